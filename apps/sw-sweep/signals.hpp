#pragma once

/// SIGINT and SIGTERM as something that long work can ask for.
namespace sw {

/// From now on the first of either is remembered; the second one ends the process as usual.
void watch_signals();

/// The signal that came, or 0.
int signal_received();

}  // namespace sw
