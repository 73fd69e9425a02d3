package workflow

// Scope is what the expressions of a plan see when a job is decided on. Values are plain JSON-like Go data.
// It is only read.
type Scope struct {
	GitHub    map[string]any
	Vars      map[string]string
	Secrets   map[string]string
	Inputs    map[string]any
	Needs     map[string]Need // the needs context: direct needs
	Ancestors map[string]Need // every need, direct or not: what success() and failure() look at
	Cancelled bool            // the run was cancelled
}

// Need is a finished job that another one needed.
type Need struct {
	Result  string            `json:"result"` // success, failure, cancelled or skipped
	Outputs map[string]string `json:"outputs"`
}

// Decide says whether the job is to run: its if, with the status functions looking at the jobs it needed.
// An error names the file and place of the condition and is the workflow's fault.
func (j *Job) Decide(p *Plan, s *Scope) (run bool, err error) {
	return false, nil
}

// Expand settles everything that a job's matrix and expressions leave open, one Instance per combination, in
// GitHub's order. More than 256 combinations are an error, and so is a matrix that yields none.
func (j *Job) Expand(p *Plan, s *Scope) ([]Instance, error) {
	return nil, nil
}

// EvalConcurrency evaluates the workflow's concurrency. An empty group means that there is none.
func (p *Plan) EvalConcurrency(s *Scope) (group string, cancelInProgress bool, queueMax bool, err error) {
	return "", false, false, nil
}

// EvalRunName evaluates run-name; "" where the workflow has none.
func (p *Plan) EvalRunName(s *Scope) (string, error) {
	return "", nil
}
