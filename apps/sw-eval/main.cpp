#include "commands.hpp"

int main(int argc, char** argv) {
  sw::Program program("sw-eval", "Evaluates sparse attention against dense attention");
  sw::setup_trace(program, {argv, argv + argc});
  sw::setup_model(program, {argv, argv + argc});
  sw::setup_score(program, {argv, argv + argc});
  sw::setup_methods(program);
  return program.run(argc, argv);
}
