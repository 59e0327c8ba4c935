#pragma once

#include <string_view>

/// Parts of the page, put into the program by html/embed.cmake.
namespace sw {

extern const std::string_view kPageStyle;    ///< CSS
extern const std::string_view kPageScript;   ///< JavaScript of this project
extern const std::string_view kPlotLibrary;  ///< D3's modules; "" when they were not found
extern const std::string_view kPlotLicence;  ///< of the modules, for the page
extern const std::string_view kPlotMissing;  ///< which modules were not found; "" if none

}  // namespace sw
