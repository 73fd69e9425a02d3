package workflow

// Parse reads a workflow file. All problems of the file are returned, sorted by place; the Workflow is nil only
// if nothing of it is usable. file is what problems name; nothing is read from disk.
func Parse(file string, src []byte) (*Workflow, []Problem) {
	return parseLimited(file, src, Limits{})
}

func parseLimited(file string, src []byte, limits Limits) (*Workflow, []Problem) {
	r := newReader(file, src)
	limits = limits.orDefaults()
	root := r.document(src, limits)
	if root == nil {
		return nil, r.done()
	}
	r.read(root, grammar().workflow, 0)
	if root.kind != kindMap {
		return nil, r.done()
	}
	w := &Workflow{
		File:        file,
		Name:        textOf(root.get("name")),
		RunName:     textOf(root.get("run-name")),
		Env:         vars(root.get("env")),
		Defaults:    defaults(root.get("defaults")),
		Permissions: permissions(root.get("permissions")),
		Concurrency: r.concurrency(root.get("concurrency")),
		At:          places(root, "run-name", "concurrency"),
	}
	if on := root.get("on"); on != nil {
		r.events(on, w)
	}
	if jobs := root.get("jobs"); jobs != nil {
		w.Jobs = r.jobs(jobs, limits.FileJobs)
	}
	r.references(root, w)
	return w, r.done()
}

// document reads the YAML and reports why that is not possible.
func (r *reader) document(src []byte, limits Limits) *node {
	root, p := parseYAML(src, limits)
	if p != nil {
		r.report(Pos{p.Line, p.Column}, SeverityError, p.Rule, p.Message)
		return nil
	}
	return root
}

// places are those of some keys' values.
func places(n *node, keys ...string) map[string]Pos {
	var out map[string]Pos
	for _, key := range keys {
		if v := n.get(key); v != nil {
			if out == nil {
				out = map[string]Pos{}
			}
			out[key] = v.pos()
		}
	}
	return out
}

// vars converts a mapping to strings in the file's order.
func vars(n *node) []EnvVar {
	if n == nil || n.bad {
		return nil
	}
	if isExpression(n) {
		return []EnvVar{{Name: Insert, Value: n.text}}
	}
	var out []EnvVar
	for _, p := range entries(n) {
		if p.key.bad || p.value.bad || !p.value.scalar() {
			continue
		}
		name := p.key.text
		if isInsert(name) {
			name = Insert
		}
		out = append(out, EnvVar{Name: name, Value: p.value.text})
	}
	return out
}

func defaults(n *node) Defaults {
	run := n.get("run")
	return Defaults{Shell: textOf(run.get("shell")), WorkingDirectory: textOf(run.get("working-directory"))}
}

// permissions converts a permissions key: nil where there is none, the scopes that are not none otherwise.
func permissions(n *node) Permissions {
	if n == nil {
		return nil
	}
	out := Permissions{}
	switch n.text {
	case "read-all", "write-all":
		for _, name := range allPermissions() {
			out[name] = n.text[:len(n.text)-len("-all")]
		}
	}
	for _, p := range entries(n) {
		if !p.value.bad && p.value.text != "none" {
			out[p.key.text] = p.value.text
		}
	}
	return out
}

// allPermissions are the scopes that read-all and write-all stand for. The newer ones have to be asked for by name.
func allPermissions() []string {
	return []string{"actions", "checks", "contents", "deployments", "discussions", "id-token", "issues", "packages",
		"pages", "pull-requests", "repository-projects", "security-events", "statuses"}
}

// concurrency converts a group, as a string or a mapping.
func (r *reader) concurrency(n *node) *Concurrency {
	if n == nil || n.bad {
		return nil
	}
	c := &Concurrency{CancelInProgress: "false"}
	if n.scalar() {
		c.Group = n.text
		return c
	}
	c.Group = textOf(n.get("group"))
	if cancel := n.get("cancel-in-progress"); cancel != nil {
		c.CancelInProgress = cancel.text
	}
	if q := n.get("queue"); q != nil {
		c.Queue = q.text
		if q.text == "max" && c.CancelInProgress == "true" {
			r.errorf(q, "concurrency", "'queue: max' cannot be used together with 'cancel-in-progress: true'")
		}
	}
	return c
}
