#pragma once

#include <vector>

#include "report/report_file.hpp"

/// The values of a cell that readers look at first, each listed once: tables and figures, on pages
/// and in files, take name, unit and interval from here.
namespace sw {

struct CellColumn {
  const char* key;
  const char* label;
  const char* path;           ///< of the value in the cell
  const char* interval = "";  ///< of the object with low and high; "" for none
  double scale = 1;           ///< from the stored value to the label's unit
  int digits = 3;             ///< behind the point; negative: significant ones
  const char* help = "";
  bool text = false;
};

/// The columns of reports of this kind, in the order of a table.
const std::vector<CellColumn>& cell_columns(ReportKind kind);

}  // namespace sw
