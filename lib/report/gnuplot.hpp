#pragma once

#include <string>
#include <string_view>

#include "report/figure.hpp"

/// Draws figures with gnuplot, a program that users have or install: nothing is linked. Its script
/// holds the data too, so that a figure can be adapted by hand.
namespace sw {

enum class FigureFormat { kSvg, kPng, kPdf };

/// By the ending of a file's name. Throws Error(kUsage) for others than .svg, .png and .pdf.
FigureFormat figure_format(std::string_view path);

/// The script that draws `figure` to its standard output. Texts of reports are quoted: none is ever
/// a command.
std::string gnuplot_script(const Figure& figure, FigureFormat format);

/// What gnuplot makes of the script, the bytes of an image. Throws Error(kUnsupported) when it is
/// not installed, Error(kResource) when it fails.
std::string run_gnuplot(const std::string& script);

}  // namespace sw
