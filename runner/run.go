package runner

import "context"

// Run runs one job to its end and returns how it ended. A job that fails is no error: the error is for faults of
// ours, such as a machine that died, and the Result then holds what is known.
//
// When ctx ends, the running step is interrupted unless its condition holds for a cancelled job; the steps whose
// conditions hold, and the post steps, still run, for at most the instance's CancelTimeout.
func Run(ctx context.Context, c Config, j Job) (Result, error) {
	return Result{}, nil
}
