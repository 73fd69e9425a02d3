package workflow

// Options are what Compile needs beyond the workflow. The zero value compiles without an event.
type Options struct {
	Trigger Trigger
	// Load fetches a reusable workflow for a job's uses. A nil Load, or one that returns no source and no error,
	// means that it is not available: the job then keeps Uses, and its Call is nil.
	Load   func(uses string) (file string, src []byte, err error)
	Limits Limits
}

// Compile makes the Plan of a workflow for an event. The Plan is nil if one of the problems is an error.
func Compile(w *Workflow, o Options) (*Plan, []Problem) {
	return nil, nil
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
