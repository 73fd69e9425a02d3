package workflow

import (
	"slices"
	"strings"
)

// What a context has that nobody writes has no value, and GitHub says nothing. Most often it is misspelt: that is
// worth a warning wherever the file itself says what there is.

// sight is what expressions at one place of a file can name. A nil slice of names: they are not known.
type sight struct {
	needs   []string            // the jobs that this one needs
	outputs map[string][]string // of each job; nil: not known
	jobs    []string
	steps   ids // given so far
	later   ids // given anywhere in the job
	matrix  []string
	single  bool // the job has no matrix
	inputs  []string
}

// references warns of what the expressions below the root of a workflow name and is not there.
func (r *reader) references(root *node, w *Workflow) {
	if len(r.exprs) == 0 {
		return
	}
	top := sight{outputs: map[string][]string{}, inputs: declaredInputs(w)}
	jobs := root.get("jobs")
	for _, p := range entries(jobs) {
		top.jobs = append(top.jobs, p.key.text)
		if p.value.get("uses") == nil {
			top.outputs[strings.ToLower(p.key.text)] = keysOf(p.value.get("outputs"))
		}
	}
	for _, p := range root.pairs {
		if p.value != jobs {
			r.lookBelow(p.value, &top)
		}
	}
	for _, p := range entries(jobs) {
		r.jobReferences(p.value, top)
	}
}

// declaredInputs are the inputs of a workflow, however it is started; nil if it has none: then nobody can say what was meant.
func declaredInputs(w *Workflow) []string {
	var names []string
	for _, in := range slices.Concat(w.Inputs, w.Dispatch) {
		names = append(names, in.Name)
	}
	return names
}

// keysOf are the keys of a mapping, not nil; nil if some of them are expressions.
func keysOf(n *node) []string {
	names := []string{}
	for _, p := range entries(n) {
		if isExpression(p.key) {
			return nil
		}
		names = append(names, p.key.text)
	}
	if n != nil && n.kind != kindMap {
		return nil
	}
	return names
}

func (r *reader) jobReferences(job *node, s sight) {
	s.needs = texts(job.get("needs"))
	if s.needs == nil {
		s.needs = []string{}
	}
	s.matrix, s.single = matrixNames(job.get("strategy"))
	s.later = ids{}
	steps := job.get("steps")
	stepIDs(steps, s.later)
	for _, p := range entries(job) {
		if p.value != steps {
			s.steps = s.later
			r.lookBelow(p.value, &s)
		}
	}
	s.steps = ids{}
	r.stepReferences(steps, &s)
}

// matrixNames are the keys of a matrix that is written down; single where there is no matrix.
func matrixNames(strategy *node) (names []string, single bool) {
	if strategy == nil {
		return nil, true
	}
	if strategy.kind != kindMap {
		return nil, false
	}
	matrix := strategy.get("matrix")
	if matrix == nil {
		return nil, true
	}
	if matrix.kind != kindMap {
		return nil, false
	}
	for _, p := range matrix.pairs {
		switch {
		case isExpression(p.key):
			return nil, false
		case p.key.text == "include" && p.value.kind != kindSeq:
			return nil, false
		case p.key.text == "include":
			for _, item := range p.value.items {
				if item.kind != kindMap {
					return nil, false
				}
				names = append(names, keysOf(item)...)
			}
		case p.key.text != "exclude":
			names = append(names, p.key.text)
		}
	}
	return names, false
}

// stepIDs collects the ids of steps, those of parallel ones too.
func stepIDs(steps *node, into ids) {
	if steps == nil || steps.kind != kindSeq {
		return
	}
	for _, step := range steps.items {
		if id := textOf(step.get("id")); id != "" {
			into[strings.ToLower(id)] = 1
		}
		stepIDs(step.get("parallel"), into)
	}
}

func (r *reader) stepReferences(steps *node, s *sight) {
	if steps == nil || steps.kind != kindSeq {
		return
	}
	for _, step := range steps.items {
		r.lookBelow(step, s)
		r.injections(step)
		if id := textOf(step.get("id")); id != "" {
			s.steps[strings.ToLower(id)] = 1
		}
		stepIDs(step.get("parallel"), s.steps)
	}
}

// actionReferences is references for the steps and outputs of a composite action.
func (r *reader) actionReferences(root *node, a *Action) {
	s := sight{later: ids{}, inputs: []string{}}
	for _, in := range a.Inputs {
		s.inputs = append(s.inputs, in.Name)
	}
	steps := root.get("runs").get("steps")
	stepIDs(steps, s.later)
	s.steps = s.later
	r.lookBelow(root.get("outputs"), &s)
	s.steps = ids{}
	r.stepReferences(steps, &s)
}

// lookBelow checks every expression in n and below it.
func (r *reader) lookBelow(n *node, s *sight) {
	if n == nil || r.full() {
		return
	}
	said := ""
	for _, e := range r.exprs[n] {
		for _, path := range e.Paths() {
			if m := s.missing(path); m != "" && m != said {
				r.warnf(n.pos(), "reference", "%s", m)
				said = m
			}
		}
	}
	for _, item := range n.items {
		r.lookBelow(item, s)
	}
	for _, p := range n.pairs {
		r.lookBelow(p.value, s)
	}
}

// missing says what of a path is not there, or "".
func (s *sight) missing(path []string) string {
	if len(path) < 2 {
		return ""
	}
	context, name := strings.ToLower(path[0]), path[1]
	switch context {
	case "steps":
		return s.missingStep(name, path[2:])
	case "needs":
		return s.missingNeed(name, path[2:])
	case "jobs":
		if s.jobs == nil {
			return ""
		}
		if !has(s.jobs, name) {
			return "there is no job '" + name + "'" + near(name, s.jobs)
		}
		return s.missingOutput(name, path[2:])
	case "matrix":
		switch {
		case s.single:
			return "the job has no matrix, so that 'matrix." + name + "' has no value"
		case s.matrix != nil && !has(s.matrix, name):
			return "the matrix has no '" + name + "'" + near(name, s.matrix)
		}
	case "inputs":
		if s.inputs != nil && !has(s.inputs, name) {
			return "there is no input '" + name + "'" + near(name, s.inputs)
		}
	default:
		if names := fixedNames(context); names != nil && !has(names, name) {
			return "there is no '" + path[0] + "." + name + "'" + near(name, names)
		}
	}
	return ""
}

func (s *sight) missingStep(id string, rest []string) string {
	if s.steps == nil || strings.HasPrefix(id, "__") {
		return ""
	}
	key := strings.ToLower(id)
	if _, known := s.steps[key]; !known {
		if _, later := s.later[key]; later {
			return "the step '" + id + "' comes later, so that 'steps." + id + "' has no value here"
		}
		return "there is no step '" + id + "'" + near(id, s.later.given())
	}
	known := []string{"outputs", "outcome", "conclusion"}
	if len(rest) > 0 && !has(known, rest[0]) {
		return "a step has no '" + rest[0] + "'" + near(rest[0], known)
	}
	return ""
}

func (s *sight) missingNeed(job string, rest []string) string {
	switch {
	case s.needs == nil:
		return ""
	case !has(s.needs, job) && has(s.jobs, job):
		return "the job does not need '" + job + "', so that 'needs." + job + "' has no value; add it to needs"
	case !has(s.needs, job):
		return "the job does not need '" + job + "'" + near(job, s.needs)
	}
	return s.missingOutput(job, rest)
}

// missingOutput looks at what follows the name of a job.
func (s *sight) missingOutput(job string, rest []string) string {
	known := []string{"outputs", "result"}
	if len(rest) == 0 {
		return ""
	}
	if !has(known, rest[0]) {
		return "a job has no '" + rest[0] + "'" + near(rest[0], known)
	}
	outputs := s.outputs[strings.ToLower(job)]
	if len(rest) < 2 || !strings.EqualFold(rest[0], "outputs") || outputs == nil || has(outputs, rest[1]) {
		return ""
	}
	return "the job '" + job + "' has no output '" + rest[1] + "'" + near(rest[1], outputs)
}

// fixedNames are the names in a context that are always the same; nil for one whose names nobody can list.
func fixedNames(context string) []string {
	switch context {
	case "github":
		return strings.Fields(`action action_path action_ref action_repository action_status actor actor_id api_url artifacts
			artifacts_list base_ref env event event_name event_path graphql_url head_ref job output path ref ref_name
			ref_protected ref_type repository repository_id repository_owner repository_owner_id repository_visibility
			repositoryUrl retention_days run_attempt run_id run_number secret_source server_url sha state step_summary token
			triggering_actor workflow workflow_ref workflow_sha workspace`)
	case "runner":
		return strings.Fields("arch debug environment name os temp tool_cache workspace")
	case "job":
		return strings.Fields("check_run_id container services status workflow_file_path workflow_ref workflow_repository workflow_sha")
	case "strategy":
		return strings.Fields("fail-fast job-index job-total max-parallel")
	}
	return nil
}

func has(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}

// near is similar, unless there are too many words to look through each time.
func near(written string, words []string) string {
	if len(words) > 200 {
		return ""
	}
	return similar(written, words)
}
