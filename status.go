package tgr

import "fmt"

// Status is where a run, a job or a step is on its way.
type Status string

// The statuses, in the order in which they are passed through.
const (
	Pending    Status = "pending"     // waits for its needs, or for its workflow to be planned
	Queued     Status = "queued"      // may start; waits for a machine
	InProgress Status = "in_progress" // runs, under a lease
	Completed  Status = "completed"   // has a conclusion; never changes again
)

// Conclusion is how a completed run, job or step ended. The words are GitHub's.
type Conclusion string

// The conclusions.
const (
	Success        Conclusion = "success"
	Failure        Conclusion = "failure"
	Cancelled      Conclusion = "cancelled"
	Skipped        Conclusion = "skipped"
	TimedOut       Conclusion = "timed_out"
	StartupFailure Conclusion = "startup_failure" // the workflow could not be read or planned
)

// Failed reports whether c makes what contains it fail. An absent conclusion is a failure.
func (c Conclusion) Failed() bool { return c != Success && c != Skipped }

// Done reports whether s is final.
func (s Status) Done() bool { return s == Completed }

// NextJob is the state machine of a job: it returns nil if a job may go from one status to another.
//
//	pending ──▶ queued ──▶ in_progress ──▶ completed
//	   └───────────┴───────────▲ (skipped, cancelled: straight to completed)
//	in_progress ──▶ queued: only when the lease was lost, or the fault was ours and an attempt is left
func NextJob(from, to Status) error {
	ok := false
	switch from {
	case Pending:
		ok = to == Queued || to == Completed
	case Queued:
		ok = to == InProgress || to == Completed
	case InProgress:
		ok = to == Completed || to == Queued
	}
	if !ok {
		return Errorf("job.transition", Conflict, "a job that is %s cannot become %s", from, to)
	}
	return nil
}

// NextStep is the state machine of a step, which never goes back.
func NextStep(from, to Status) error {
	if from == Pending && (to == InProgress || to == Completed) || from == InProgress && to == Completed {
		return nil
	}
	return Errorf("step.transition", Conflict, "a step that is %s cannot become %s", from, to)
}

// Outcome is the status and conclusion of one job, as Fold needs them.
type Outcome struct {
	Status          Status
	Conclusion      Conclusion
	ContinueOnError bool // its failure does not fail the run
}

// Fold derives the status and conclusion of a run from those of its jobs.
// A run without jobs is queued: it has not been planned. A run is completed when all its jobs are;
// failure beats cancelled (fail-fast cancels what would have run beside it), cancelled beats success, and a run
// whose jobs were all skipped is skipped.
func Fold(jobs []Outcome) (Status, Conclusion) {
	if len(jobs) == 0 {
		return Queued, ""
	}
	started, done, skipped := 0, 0, 0
	failed, cancelled := false, false
	for _, j := range jobs {
		if j.Status != Pending && j.Status != Queued {
			started++
		}
		if !j.Status.Done() {
			continue
		}
		done++
		switch {
		case j.Conclusion == Skipped:
			skipped++
		case j.Conclusion == Cancelled:
			cancelled = true
		case j.Conclusion.Failed() && !j.ContinueOnError:
			failed = true
		}
	}
	switch {
	case started == 0 && done == 0:
		return Queued, ""
	case done < len(jobs):
		return InProgress, ""
	case failed:
		return Completed, Failure
	case cancelled:
		return Completed, Cancelled
	case skipped == len(jobs):
		return Completed, Skipped
	}
	return Completed, Success
}

// FoldJobs is Fold over the jobs of a run's current attempt. A plan job that succeeded does not count: the jobs that
// it made stand for it.
func FoldJobs(jobs []Job) (Status, Conclusion) {
	var outcomes []Outcome
	for _, j := range jobs {
		if j.Kind != PlanJob || j.Conclusion != Success {
			outcomes = append(outcomes, Outcome{Status: j.Status, Conclusion: j.Conclusion, ContinueOnError: j.ContinueOnError})
		}
	}
	return Fold(outcomes)
}

// String shows a status with its conclusion, if it has one.
func (o Outcome) String() string {
	if o.Conclusion == "" {
		return string(o.Status)
	}
	return fmt.Sprintf("%s (%s)", o.Status, o.Conclusion)
}
