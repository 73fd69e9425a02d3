package tgr

import "time"

// Insights are what was learnt from the runs of one repository. They advise; what they say comes from logs and
// workflows, and is hostile. Nothing is said of what was seen fewer than eight times.
type Insights struct {
	Repo        string       `json:"repository"`
	Private     bool         `json:"private,omitempty"`
	Forks       bool         `json:"forks,omitempty"` // learnt from pull requests of forks alone, which teach nothing else
	Jobs        int          `json:"jobs"`            // that were learnt from
	Ours        int          `json:"our_faults"`      // jobs that failed by a fault of ours: nothing else was learnt from them
	Lost        int          `json:"logs_lost"`       // jobs whose log was gone
	Until       time.Time    `json:"until,omitzero"`  // when the last of them ended
	Timings     []Timing     `json:"timings"`
	Flaky       []Flake      `json:"flaky"`
	Failures    []Cluster    `json:"failures"`
	Lessons     []Lesson     `json:"lessons"`
	Risks       []Risk       `json:"risks"`
	Suggestions []Suggestion `json:"suggestions"` // the one that matters most is the first
	Command     *Command     `json:"command,omitempty"`
	NotMeasured []string     `json:"not_measured"` // what is not known here, and why
}

// Timing is how often a job or a step succeeds and how long it takes. Without Enough there is only its count.
type Timing struct {
	Workflow  string        `json:"workflow"`
	Job       string        `json:"job"`
	Step      string        `json:"step,omitempty"` // "": the job
	N         int           `json:"n"`
	Enough    bool          `json:"enough"`              // at least eight samples
	Success   float64       `json:"success"`             // probability of the next one
	Low       float64       `json:"success_low"`         // interval of 95 % about what was seen
	High      float64       `json:"success_high"`        //
	Median    time.Duration `json:"median_ns"`           // of successes: the estimate for the next
	P90       time.Duration `json:"p90_ns"`              //
	Timeout   time.Duration `json:"timeout_ns"`          // that would fit: max(3×p99, p99 + 2 min)
	Slower    float64       `json:"slower,omitempty"`    // times: the last eight are that much slower than those before
	CPU       time.Duration `json:"cpu_ns,omitempty"`    // processor time of the median success; 0: not measured
	PeakMiB   int64         `json:"peak_mb,omitempty"`   // p95 of the memory in use at its most; 0: not measured
	MemoryMiB int64         `json:"memory_mb,omitempty"` // that a machine should have: 1.3 times PeakMiB, a step more where memory ran out
	MemoryOf  []RunID       `json:"memory_evidence,omitempty"`
	Evidence  []RunID       `json:"evidence"` // the latest runs of it
}

// Learnt says of which repository something is known.
type Learnt struct {
	Repo    string
	Private bool
	Forks   bool // of its forks' pull requests alone
	Jobs    int
	Until   time.Time // when the last of them ended
}

// Flake is a step that fails and succeeds on the same code, or seems to.
type Flake struct {
	Workflow string  `json:"workflow"`
	Job      string  `json:"job"`
	Step     string  `json:"step"`
	Definite bool    `json:"definite"` // it has failed and succeeded on the same code
	Rate     float64 `json:"rate"`     // of failures
	FlipRate float64 `json:"flip_rate"`
	Evidence []RunID `json:"evidence"`
}

// Cluster is a set of failures that look the same.
type Cluster struct {
	ID       string   `json:"id"`
	Sample   string   `json:"sample"` // a line, masked
	N        int      `json:"n"`
	Jobs     []string `json:"jobs"`
	Also     []Link   `json:"also,omitempty"`  // lines that failures with Sample print too, masked
	Fixes    []Link   `json:"fixes,omitempty"` // files that changed when it went away
	Evidence []RunID  `json:"evidence"`
}

// Lesson is a command that has failed in the same way at least three times.
type Lesson struct {
	Command    string  `json:"command"`
	Failure    string  `json:"failure"`
	N          int     `json:"n"`
	Confidence float64 `json:"confidence"` // lower bound of the share of the command's failures; it fades with a half-life of 30 days
	Fix        string  `json:"fix,omitempty"`
	Evidence   []RunID `json:"evidence"`
}

// Link is an edge of the graph of commands, failures and files, seen from one end.
type Link struct {
	To       string  `json:"to"`
	N        int     `json:"n"`
	Low      float64 `json:"low"`               // lower bound of its share, at 95 %
	Success  float64 `json:"success,omitempty"` // where To is a command that ran next: the probability that it succeeds there; 0: not enough data
	Evidence []RunID `json:"evidence"`
}

// Risk is a file after whose change a job fails more often than it does otherwise.
type Risk struct {
	File     string  `json:"file"` // or a folder
	Workflow string  `json:"workflow"`
	Job      string  `json:"job"`
	N        int     `json:"n"`     // runs in which it had changed
	Low      float64 `json:"low"`   // lower bound of the share that failed, at 95 %
	Usual    float64 `json:"usual"` // share of all runs of the job that fail
	Evidence []RunID `json:"evidence"`
}

// Command is what is known of a command.
type Command struct {
	Name     string  `json:"name"`
	N        int     `json:"n"`
	Enough   bool    `json:"enough"`
	Success  float64 `json:"success"`  // probability of the next one
	Related  []Link  `json:"related"`  // commands that succeeded after it
	Failures []Link  `json:"failures"` // how it fails
}

// The kinds of suggestions.
const (
	SuggestCache       = "cache"
	SuggestParallelise = "parallelise"
	SuggestAvoid       = "avoid"
	SuggestAlternative = "alternative"
	SuggestTimeout     = "timeout"
	SuggestSplit       = "split"
	SuggestQuarantine  = "quarantine"
	SuggestMemory      = "memory"
	SuggestSlower      = "slower"
)

// Suggestion is something that somebody could do, with the runs that speak for it. Nothing does it by itself.
type Suggestion struct {
	Kind       string        `json:"kind"`
	Workflow   string        `json:"workflow,omitempty"`
	Job        string        `json:"job,omitempty"`
	Step       string        `json:"step,omitempty"`
	Text       string        `json:"text"`
	Confidence float64       `json:"confidence"`
	Saves      time.Duration `json:"saves_ns,omitempty"` // of each run, where that was measured; 0: it is not known
	Evidence   []RunID       `json:"evidence"`
}
