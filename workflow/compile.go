package workflow

import "slices"

// Options are what Compile needs beyond the workflow. The zero value compiles without an event.
type Options struct {
	Trigger Trigger
	// Load fetches a reusable workflow for a job's uses, in which ./ is already replaced where the calling file is
	// itself of another repository. A nil Load, or one that returns no source and no error, means that it is not
	// available: the job then keeps Uses, and its Call is nil.
	Load   func(uses string) (Loaded, error)
	Repo   string // owner/name that the workflow is of; "": not known, and then it is taken for the owner of all that it calls
	Limits Limits
}

// Loaded is a reusable workflow as Load found it.
type Loaded struct {
	File string // what errors call it
	Data []byte // nil: it is not available
	Repo string // owner/name; "": the repository of the run
	Ref  string // as written in uses; "" with Repo
	SHA  string // the commit that Ref was then; "" with Repo
}

// Compile makes the Plan of a workflow for an event. The Plan is nil if one of the problems is an error. The Workflow
// is not changed; the Plan shares its slices and maps, which are only read.
func Compile(w *Workflow, o Options) (*Plan, []Problem) {
	r := newReader(w.File, nil)
	p := newPlan(w, o.Trigger.Event)
	if o.Trigger.Event == "workflow_dispatch" {
		p.Inputs = r.dispatchValues(w, o.Trigger.Inputs)
	}
	c := &calls{load: o.Load, repo: o.Repo, limits: o.Limits.orDefaults(), loaded: map[string]*called{}, left: o.Limits.orDefaults().Jobs}
	problems := append(r.problems, c.link(p, &caller{file: w.File, uses: "./" + w.File})...)
	if len(p.Jobs) == 0 && !Failed(problems) {
		problems = append(problems, Problem{File: w.File, Rule: "jobs", Message: "the workflow has no jobs"})
	}
	if Failed(problems) {
		return nil, problems
	}
	return p, problems
}

func newPlan(w *Workflow, event string) *Plan {
	p := &Plan{
		Version: PlanVersion, File: w.File, Name: w.Name, RunName: w.RunName, Event: event, Env: w.Env,
		Defaults: w.Defaults, Permissions: w.Permissions, Concurrency: w.Concurrency, Jobs: slices.Clone(w.Jobs), At: w.At,
	}
	if p.Name == "" {
		p.Name = w.File
	}
	return p
}

// Job returns the job of that key, or nil.
func (p *Plan) Job(key string) *Job {
	for i := range p.Jobs {
		if p.Jobs[i].Key == key {
			return &p.Jobs[i]
		}
	}
	return nil
}
