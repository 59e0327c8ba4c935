#include "commands.hpp"

int main(int argc, char** argv) {
  sw::Program program("sw-trace",
                      "Captures, makes, checks and converts traces of attention inputs");
  sw::setup_capture(program);
  sw::setup_make(program);
  sw::setup_inspect(program);
  sw::setup_validate(program);
  sw::setup_import(program);
  return program.run(argc, argv);
}
