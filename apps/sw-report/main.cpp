#include "commands.hpp"

int main(int argc, char** argv) {
  sw::Program program("sw-report", "Shows, compares, joins and converts reports");
  sw::setup_html(program);
  sw::setup_compare(program);
  sw::setup_csv(program);
  sw::setup_plot(program);
  sw::setup_merge(program);
  return program.run(argc, argv);
}
