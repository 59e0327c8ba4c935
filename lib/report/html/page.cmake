# page_assets.cpp, from this folder and D3's modules. Debian's node-d3-* packages and npm's
# node_modules share one layout, so SW_D3_DIR may be either.
find_path(SW_D3_DIR d3-selection/dist/d3-selection.min.js PATH_SUFFIXES share/nodejs
          DOC "Folder of D3's modules (/usr/share/nodejs, or a node_modules), for sw-report html")
set(modules "")
set(missing "")
# In the order of their dependencies; version 4 of d3-scale needs no d3-collection.
foreach(module array collection color format interpolate time time-format path scale axis shape
               selection)
  set(file ${SW_D3_DIR}/d3-${module}/dist/d3-${module}.min.js)
  if(SW_D3_DIR AND EXISTS ${file})
    list(APPEND modules ${file})
  elseif(NOT module STREQUAL "collection")
    list(APPEND missing d3-${module})
  endif()
endforeach()
if(missing)
  message(STATUS "D3: not found; left out: sw-report html (Debian: node-d3-scale node-d3-axis "
                 "node-d3-shape node-d3-selection)")
  set(modules "")
endif()

set(html ${CMAKE_CURRENT_SOURCE_DIR}/html)
set(style ${html}/page.css)
set(scripts ${html}/format.js ${html}/plots.js ${html}/table.js
            ${html}/figures.js ${html}/page.js)
set(SW_PAGE_ASSETS ${CMAKE_CURRENT_BINARY_DIR}/page_assets.cpp)
list(JOIN scripts "|" script_list)
list(JOIN modules "|" module_list)
list(JOIN missing " " missing_list)
add_custom_command(
  OUTPUT ${SW_PAGE_ASSETS}
  COMMAND ${CMAKE_COMMAND} -D STYLE=${style} "-DSCRIPTS=${script_list}"
          "-DMODULES=${module_list}" "-DMISSING=${missing_list}" -D LICENCE=${html}/d3_licence.txt
          -D OUTPUT=${SW_PAGE_ASSETS} -P ${html}/embed.cmake
  DEPENDS ${style} ${scripts} ${modules} ${html}/embed.cmake ${html}/d3_licence.txt
  VERBATIM)
