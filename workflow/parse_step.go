package workflow

import "strings"

// steps converts the steps of a job or of a composite action and gives ids to those without one.
func (r *reader) steps(n *node) []Step {
	names := ids{}
	out := r.stepList(n, names)
	nameSteps(out, names)
	r.background(out, map[string]bool{})
	return out
}

// background checks that steps wait for and cancel only background steps before them.
func (r *reader) background(steps []Step, started map[string]bool) {
	for i := range steps {
		s := &steps[i]
		for _, id := range append(s.Wait[:len(s.Wait):len(s.Wait)], s.Cancel) {
			if id != "" && !strings.Contains(id, "${{") && !started[strings.ToLower(id)] {
				r.warnf(s.Pos, "steps", "there is no background step '%s' before this one", id)
			}
		}
		if s.Background {
			started[strings.ToLower(s.ID)] = true
		}
		r.background(s.Parallel, started)
	}
}

func (r *reader) stepList(n *node, names ids) []Step {
	if n == nil || n.kind != kindSeq {
		return nil
	}
	out := make([]Step, 0, len(n.items))
	for _, item := range n.items {
		if item.kind == kindMap {
			out = append(out, r.step(item, names))
		}
	}
	return out
}

// nameSteps invents ids, after all the written ones are known.
func nameSteps(steps []Step, names ids) {
	for i := range steps {
		s := &steps[i]
		if s.ID == "" {
			s.ID = names.invent(stepIDBase(s))
		}
		nameSteps(s.Parallel, names)
	}
}

func (r *reader) step(n *node, names ids) Step {
	s := Step{
		Name:             textOf(n.get("name")),
		If:               conditionOf(n.get("if")),
		Run:              textOf(n.get("run")),
		Uses:             textOf(n.get("uses")),
		With:             vars(n.get("with")),
		Env:              vars(n.get("env")),
		Shell:            textOf(n.get("shell")),
		WorkingDirectory: textOf(n.get("working-directory")),
		TimeoutMinutes:   textOf(n.get("timeout-minutes")),
		ContinueOnError:  textOf(n.get("continue-on-error")),
		Background:       boolOf(n.get("background")),
		Pos:              n.pos(),
	}
	if id := n.get("id"); id != nil && !id.bad {
		if msg := names.claim(id.text); msg != "" {
			r.follow(id.pos(), "id", "%s", msg)
		} else {
			s.ID = id.text
		}
	}
	if u := n.get("uses"); u != nil && !u.bad {
		r.actionRef(u)
	}
	r.control(&s, n, names)
	return s
}

// control converts the keys of steps that wait for, stop or group others.
func (r *reader) control(s *Step, n *node, names ids) {
	wait, all, cancel, parallel := n.get("wait"), n.get("wait-all"), n.get("cancel"), n.get("parallel")
	title := ""
	switch {
	case wait != nil:
		s.Wait, title = texts(wait), "Wait"
	case all != nil:
		s.WaitAll, title = all.kind != kindBool || all.bool, "Wait for all"
	case cancel != nil:
		s.Cancel, title = textOf(cancel), "Cancel"
	case parallel != nil:
		s.Parallel, title = r.stepList(parallel, names), "Parallel"
		if len(s.Parallel) == 0 {
			r.follow(parallel.pos(), "steps", "a parallel step needs at least one step")
		}
	default:
		return
	}
	if s.Name == "" {
		s.Name = title
	}
}

// actionRef checks the uses of a step.
func (r *reader) actionRef(n *node) {
	uses := n.text
	if image, ok := strings.CutPrefix(uses, "docker://"); ok {
		if image == "" {
			r.errorf(n, "uses", "the image after docker:// cannot be empty")
		}
		return
	}
	if isLocal(uses) {
		return
	}
	name, ref, ok := strings.Cut(uses, "@")
	parts := strings.FieldsFunc(name, isSlash)
	if !ok || ref == "" || strings.Contains(ref, "@") || len(parts) < 2 || isSlash(rune(name[0])) {
		r.errorf(n, "uses", "expected the format {owner}/{repo}[/path]@ref, ./path, $/path or docker://image, not '%s'", uses)
	}
}
