// What commands print has to arrive: a full disk is an error, not a short file.
#ifndef SWITCHYARD_CLI_OUTPUT_H_
#define SWITCHYARD_CLI_OUTPUT_H_

#include <string>

namespace switchyard {

// Prints why stdout could not be written to (an errno; 0: not known any more),
// and returns kExitFailure. A reader that went away (head, a closed terminal)
// knows, and gets no message.
int FailOutput(const std::string& command, int error);

// The last thing a command does: writes what stdout still buffers. Returns
// `exit_code`, or the failure's if the command itself saw none.
int FinishOutput(const std::string& command, int exit_code);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_OUTPUT_H_
