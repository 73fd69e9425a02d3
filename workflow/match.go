package workflow

// Trigger is an event as on: sees it.
type Trigger struct {
	Event     string                   // push, pull_request, …: the name of the webhook's event
	Action    string                   // the activity type; "" where the event has none
	Ref       string                   // github.ref: refs/heads/main, refs/tags/v1, refs/pull/7/merge
	BaseRef   string                   // target branch of a pull request or merge group, without refs/heads/
	HeadRef   string                   // source branch of a pull request; of workflow_run, its head branch
	Deleted   bool                     // a push that deletes its ref
	Changed   func() ([]string, error) // paths that changed; asked for only if a paths filter has to decide; nil: not known, filter passes
	Inputs    map[string]string        // of workflow_dispatch, as they were sent
	Workflow  string                   // of workflow_run: the name of the workflow that ran
	EventType string                   // of repository_dispatch: the event_type
	Cron      string                   // of schedule: the cron line that is due
	Image     string                   // of image_version: the image's name
	Version   string                   // of image_version
}

// Match is a workflow's answer to a Trigger.
type Match struct {
	OK     bool
	Reason string // where not OK: which filter said no, as "branches: feature/x matches none of main, releases/**"
	Err    error  // where not nil, the question could not be answered: Changed failed
}

// Match says whether the event starts the workflow.
func (w *Workflow) Match(t Trigger) Match {
	return Match{}
}
