// Package workflow reads workflow and action files, says all that is wrong with them, matches them against events
// and compiles them to an inert Plan. It runs nothing and asks nobody: files and changed paths come from the caller.
//
// Parse, Match and Compile happen when an event arrives; Decide and Expand when a job is about to be queued.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax
package workflow

// Workflow is a workflow file after parsing: what Plan says of it, before there is an event.
type Workflow struct {
	File        string
	Name        string // as written; "": the file's path is shown
	RunName     string
	Events      []Event
	Env         []EnvVar
	Defaults    Defaults
	Permissions Permissions
	Concurrency *Concurrency
	Jobs        []Job
	Dispatch    []Input     // of on.workflow_dispatch
	Inputs      []Input     // of on.workflow_call
	Secrets     []SecretDef // of on.workflow_call
	Outputs     []EnvVar    // of on.workflow_call; may use the jobs context

	At map[string]Pos // places of keys that can go wrong later
}

// Event is one event that starts a workflow, with its filters. A nil filter was not written.
type Event struct {
	Name           string
	Types          []string // activity types; nil: the event's default types
	Branches       []string
	BranchesIgnore []string
	Tags           []string
	TagsIgnore     []string
	Paths          []string
	PathsIgnore    []string
	Workflows      []string // of workflow_run
	Names          []string // of image_version
	Versions       []string // of image_version
	Schedules      []Schedule
	Pos            Pos
}

// Schedule is one entry of on.schedule.
type Schedule struct {
	Cron     string
	Timezone string // an IANA name; "": UTC
	Pos      Pos
}

// On returns the event of that name, or nil.
func (w *Workflow) On(name string) *Event {
	for i := range w.Events {
		if w.Events[i].Name == name {
			return &w.Events[i]
		}
	}
	return nil
}

// Limits bounds what a file may cost. The zero value means the defaults, which are given with each field.
type Limits struct {
	Bytes    int // of a file: 512 KiB
	Nodes    int // of a document, aliases expanded: 100,000
	Depth    int // of nesting: 100
	Calls    int // levels of reusable workflows, the caller included: 10
	Callees  int // distinct reusable workflows of one run: 50
	Jobs     int // of all the workflows that a run calls, before matrices are expanded: 2,000
	FileJobs int // of one file, before matrices are expanded: 1,000
}

func (l Limits) orDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{{&l.Bytes, 512 << 10}, {&l.Nodes, 100_000}, {&l.Depth, 100}, {&l.Calls, 10}, {&l.Callees, 50}, {&l.Jobs, 2000}, {&l.FileJobs, 1000}} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return l
}
