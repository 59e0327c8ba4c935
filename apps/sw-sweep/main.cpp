#include "commands.hpp"

int main(int argc, char** argv) {
  sw::Program program("sw-sweep", "Runs grids of evaluations that survive anything");
  sw::setup_trace(program, {argv, argv + argc});
  sw::setup_model(program, {argv, argv + argc});
  sw::setup_run(program, {argv, argv + argc});
  sw::setup_submit(program);
  return program.run(argc, argv);
}
