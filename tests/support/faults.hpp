#pragma once

#include <cstddef>

/// Failing system calls in tests. In a process that is linked with sw_faults, or has it preloaded,
/// calls that create, write, flush, close, cut or rename a file in one folder are counted, and the
/// n-th fails. A program reads the same from SW_FAULTS_FOLDER, SW_FAULTS_AT and SW_FAULTS_ERROR,
/// and leaves the count in the file SW_FAULTS_COUNT.
extern "C" {
/// Counts from 1 and fails call `fail_at` (0: none) on files in `folder` with `error`. ENOSPC goes
/// on for all later calls that need room, as a full disk does; 0 makes all writes from there on
/// short.
void sw_faults_arm(const char* folder, long fail_at, int error);
/// Back to normal; returns how many calls were counted.
long sw_faults_disarm();
}
