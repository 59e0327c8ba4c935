#include "commands.hpp"

int main(int argc, char** argv) {
  sw::Program program("sw-profile", "Times attention kernels and the stages of a selection");
  sw::setup_cpu(program, {argv, argv + argc});
  sw::setup_gpu(program, {argv, argv + argc});
  return program.run(argc, argv);
}
