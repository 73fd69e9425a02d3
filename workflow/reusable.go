package workflow

import (
	"fmt"
	"strings"
)

// workflowRef checks the uses of a job.
func (r *reader) workflowRef(n *node) {
	if n.bad {
		return
	}
	if err := checkWorkflowRef(n.text); err != nil {
		r.errorf(n, "uses", "invalid workflow reference '%s': %v", n.text, err)
	}
}

// checkWorkflowRef says what is wrong with the uses of a job: it is ./.github/workflows/x.yml or
// owner/repo/.github/workflows/x.yml@ref.
func checkWorkflowRef(uses string) error {
	const dir = ".github/workflows/"
	path := uses
	if isLocal(uses) {
		path = uses[2:]
		if strings.Contains(path, "@") {
			return fmt.Errorf("a workflow of the same repository cannot have a version")
		}
	} else {
		full, ref, ok := strings.Cut(uses, "@")
		if !ok || ref == "" {
			return fmt.Errorf("no version specified; expected owner/repo/.github/workflows/file.yml@ref")
		}
		parts := strings.SplitN(full, "/", 3)
		if len(parts) < 3 || parts[0] == "" || parts[1] == "" {
			return fmt.Errorf("expected owner/repo/.github/workflows/file.yml@ref")
		}
		path = parts[2]
	}
	file, ok := strings.CutPrefix(path, dir)
	if !ok || file == "" || strings.Contains(file, "/") {
		return fmt.Errorf("workflows must be defined at the top level of the .github/workflows/ directory")
	}
	if !strings.HasSuffix(file, ".yml") && !strings.HasSuffix(file, ".yaml") {
		return fmt.Errorf("the workflow file should have either a '.yml' or '.yaml' file extension")
	}
	return nil
}

// calls links the reusable workflows of a plan.
type calls struct {
	load   func(uses string) (Loaded, error)
	repo   string // of the workflow that was triggered; "": not known
	limits Limits
	loaded map[string]*called
	left   int // how many jobs the called workflows may still have
}

// called is a parsed reusable workflow; its problems are reported once.
type called struct {
	Loaded
	workflow *Workflow // nil: not available
	problems []Problem
}

// caller is a workflow in the chain of calls, from the file that was triggered down.
type caller struct {
	file   string
	uses   string
	parent *caller
}

func (c *caller) depth() int {
	n := 0
	for ; c != nil; c = c.parent {
		n++
	}
	return n
}

// resolve makes the uses of a nested job absolute: ./ is of the repository and version of the calling file.
func (c *caller) resolve(uses string) string {
	if !isLocal(uses) || isLocal(c.uses) {
		return uses
	}
	path, ref, _ := strings.Cut(c.uses, "@")
	parts := strings.SplitN(path, "/", 3)
	if len(parts) < 3 {
		return uses
	}
	return parts[0] + "/" + parts[1] + "/" + uses[2:] + "@" + ref
}

// link loads what the jobs of p call and all that is called from there.
func (c *calls) link(p *Plan, from *caller) []Problem {
	var problems []Problem
	for i := range p.Jobs {
		if j := &p.Jobs[i]; j.Uses != "" {
			problems = append(problems, c.call(p, j, from)...)
		}
	}
	return problems
}

func (c *calls) call(p *Plan, j *Job, from *caller) []Problem {
	uses := from.resolve(j.Uses)
	fail := func(format string, args ...any) []Problem {
		return []Problem{j.problem(p, "uses", "uses", fmt.Sprintf("error calling workflow '%s': ", j.Uses)+fmt.Sprintf(format, args...))}
	}
	for up := from; up != nil; up = up.parent {
		if sameUses(up.uses, uses) {
			return fail("it calls itself, directly or through another workflow")
		}
	}
	if from.depth() >= c.limits.Calls {
		return fail("reusable workflows are nested more than %d levels deep", c.limits.Calls)
	}
	target, err := c.fetch(uses)
	if err != nil {
		return fail("%v", err)
	}
	problems := target.problems
	target.problems = nil
	foreign := c.foreign(from, uses)
	if foreign && j.SecretsInherit {
		problems = append(problems, j.uninherited(p))
	}
	w := target.workflow
	if w == nil {
		return problems
	}
	if w.On("workflow_call") == nil {
		return append(problems, fail("the workflow is not reusable, as it does not listen to 'workflow_call'")...)
	}
	// Workflows that each call the next one twice are two to the power of ten jobs.
	if c.left -= len(w.Jobs); c.left < 0 {
		return append(problems, fail("the workflows that are called have more than %d jobs together", c.limits.Jobs)...)
	}
	plan := newPlan(w, p.Event)
	problems = append(problems, j.checkCall(p, w, foreign)...)
	problems = append(problems, narrowPermissions(p, j, plan)...)
	problems = append(problems, c.link(plan, &caller{file: w.File, uses: uses, parent: from})...)
	j.Call = &Call{File: w.File, Repo: target.Repo, Ref: target.Ref, SHA: target.SHA, Foreign: foreign, Inputs: w.Inputs, Outputs: w.Outputs, Secrets: w.Secrets, Plan: plan}
	return problems
}

// foreign reports whether a workflow that is called belongs to another owner than the one that calls it.
func (c *calls) foreign(from *caller, uses string) bool {
	repo := c.repo
	if !isLocal(from.uses) {
		repo = from.uses
	}
	owner, _, _ := strings.Cut(repo, "/")
	callee, _, _ := strings.Cut(uses, "/")
	return !isLocal(uses) && owner != "" && !strings.EqualFold(owner, callee)
}

// uninherited warns of secrets: inherit that passes none. GitHub lets only workflows of the same organization or enterprise
// inherit.
//
// https://docs.github.com/en/actions/how-tos/reuse-automations/reuse-workflows#passing-inputs-and-secrets-to-a-reusable-workflow
func (j *Job) uninherited(p *Plan) Problem {
	w := j.problem(p, "secrets", "secrets", fmt.Sprintf("the workflow '%s' inherits no secrets, as it is of another owner; pass those that it needs by name", j.Uses))
	w.Severity = SeverityWarning
	return w
}

// Uninherited returns a warning for a job whose secrets: inherit passes none, with its place in the file.
func (j *Job) Uninherited(p *Plan) (w Problem, ok bool) {
	if j.Call == nil || !j.Call.Foreign || !j.SecretsInherit {
		return w, false
	}
	return j.uninherited(p), true
}

func sameUses(a, b string) bool {
	return strings.TrimPrefix(strings.TrimPrefix(a, "./"), "$/") == strings.TrimPrefix(strings.TrimPrefix(b, "./"), "$/")
}

func (c *calls) fetch(uses string) (*called, error) {
	if t := c.loaded[uses]; t != nil {
		return t, nil
	}
	if len(c.loaded) >= c.limits.Callees {
		return nil, fmt.Errorf("a run may use at most %d reusable workflows", c.limits.Callees)
	}
	t := &called{}
	c.loaded[uses] = t
	if c.load == nil {
		return t, nil
	}
	found, err := c.load(uses)
	if err != nil {
		return nil, err
	}
	if t.Loaded = found; found.Data != nil {
		t.workflow, t.problems = parseLimited(found.File, found.Data, c.limits)
	}
	return t, nil
}

// problem is one at a key of a job.
func (j *Job) problem(p *Plan, key, rule, message string) Problem {
	at, ok := j.At[key]
	if !ok {
		at = j.Pos
	}
	return Problem{File: p.File, Line: at.Line, Column: at.Column, Rule: rule, Message: message}
}

// checkCall compares what a job passes with what the workflow declares.
func (j *Job) checkCall(p *Plan, w *Workflow, foreign bool) []Problem {
	var out []Problem
	given := keySet{}
	for _, v := range j.With {
		given.add(v.Name)
		in := findInput(w.Inputs, v.Name)
		if in == nil {
			out = append(out, j.problem(p, "with."+v.Name, "inputs", fmt.Sprintf("invalid input: '%s' is not defined in the referenced workflow%s", v.Name, similar(v.Name, inputNames(w.Inputs)))))
			continue
		}
		if !strings.Contains(v.Value, "${{") {
			if _, err := typed(in.Type, v.Value); err != nil {
				out = append(out, j.problem(p, "with."+v.Name, "inputs", fmt.Sprintf("the input '%s' %v", v.Name, err)))
			}
		}
	}
	for _, in := range w.Inputs {
		if in.Required && !given.has(in.Name) {
			out = append(out, j.problem(p, "uses", "inputs", fmt.Sprintf("the input '%s' is required, but not provided while calling", in.Name)))
		}
	}
	return append(out, j.checkSecrets(p, w, foreign)...)
}

func (j *Job) checkSecrets(p *Plan, w *Workflow, foreign bool) []Problem {
	if j.SecretsInherit && !foreign {
		return nil
	}
	var out []Problem
	given := keySet{}
	for _, v := range j.Secrets {
		given.add(v.Name)
		if !declares(w.Secrets, v.Name) {
			out = append(out, j.problem(p, "secrets."+v.Name, "secrets", fmt.Sprintf("invalid secret: '%s' is not defined in the referenced workflow", v.Name)))
		}
	}
	for _, s := range w.Secrets {
		if s.Required && !given.has(s.Name) {
			out = append(out, j.problem(p, "uses", "secrets", fmt.Sprintf("the secret '%s' is required, but not provided while calling", s.Name)))
		}
	}
	return out
}

func findInput(inputs []Input, name string) *Input {
	for i := range inputs {
		if strings.EqualFold(inputs[i].Name, name) {
			return &inputs[i]
		}
	}
	return nil
}

func declares(secrets []SecretDef, name string) bool {
	for i := range secrets {
		if strings.EqualFold(secrets[i].Name, name) {
			return true
		}
	}
	return false
}

// narrowPermissions gives the called workflow the caller's permissions where it states none, and refuses jobs of it that
// ask for more.
func narrowPermissions(p *Plan, j *Job, plan *Plan) []Problem {
	ceiling := j.Permissions
	if ceiling == nil {
		ceiling = p.Permissions
	}
	if ceiling == nil {
		return nil
	}
	if plan.Permissions == nil {
		plan.Permissions = ceiling
	}
	var out []Problem
	for i := range plan.Jobs {
		wants := plan.Jobs[i].Permissions
		if wants == nil {
			wants = plan.Permissions
		}
		for _, name := range sortedKeys(wants) {
			if rank(wants[name]) > rank(ceiling[name]) {
				out = append(out, j.problem(p, "uses", "permissions", fmt.Sprintf(
					"error calling workflow '%s': its job '%s' requests '%s: %s', but is only allowed '%s: %s'",
					j.Uses, plan.Jobs[i].Key, name, wants[name], name, levelOf(ceiling[name]))))
			}
		}
	}
	return out
}

func rank(level string) int {
	switch level {
	case "write":
		return 2
	case "read":
		return 1
	}
	return 0
}

func levelOf(level string) string {
	if level == "" {
		return "none"
	}
	return level
}
