package workflow

import (
	"slices"
	"strings"
)

// steps converts the steps of a job or of a composite action and gives ids to those without one.
func (r *reader) steps(n *node) []Step {
	names := ids{}
	out := r.stepList(n, names)
	nameSteps(out, names)
	return out
}

// targets checks that a step waits for and cancels only steps before it, and warns of those that it never has to wait for.
func (r *reader) targets(self *Step, ids []*node, names ids) {
	for _, id := range ids {
		key := strings.ToLower(id.text)
		switch given, known := names[key]; {
		case id.bad || !id.scalar():
		case strings.HasPrefix(id.text, "__"):
			r.errorf(id, "steps", "the identifier '%s' is invalid: ids that start with '__' are reserved", id.text)
		case strings.EqualFold(id.text, self.ID):
			r.errorf(id, "steps", "step '%s' cannot wait for or cancel itself", id.text)
		case !known:
			r.errorf(id, "steps", "there is no step '%s' before this one%s", id.text, r.similarID(id.text, names))
		case given != inBackground:
			r.warnf(id.pos(), "steps", "the step '%s' does not run in the background", id.text)
		}
	}
}

// similarID is the nearest of the ids that are given, unless too many problems were found or there are too many ids to look
// through for each.
func (r *reader) similarID(written string, names ids) string {
	if r.full() || len(names) > 200 {
		return ""
	}
	return similar(written, names.given())
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
			if s.Background {
				names[strings.ToLower(id.text)] = inBackground
			}
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
		if wait.scalar() {
			r.targets(s, []*node{wait}, names)
		} else {
			r.targets(s, wait.items, names)
		}
	case all != nil:
		s.WaitAll, title = true, "Wait for all"
		if all.kind == kindBool && !all.bool {
			r.errorf(all, "steps", "wait-all must be true or have no value")
		}
	case cancel != nil:
		s.Cancel, title = textOf(cancel), "Cancel"
		r.targets(s, []*node{cancel}, names)
	case parallel != nil:
		s.Parallel, title = r.stepList(parallel, names), "Parallel"
		if len(s.Parallel) == 0 {
			r.warnf(parallel.pos(), "steps", "a parallel step without steps does nothing")
		}
		if slices.ContainsFunc(parallel.items, func(item *node) bool { return item.get("background") != nil }) {
			r.follow(n.pos(), "steps", "'background' is not allowed within parallel, whose steps all run in the background")
		}
	default:
		return
	}
	if s.Name == "" {
		s.Name = title
	}
}

// validRepo reports whether a repository can have that owner and name.
func validRepo(owner, name string) bool {
	other := func(c rune) bool { return !isIDChar(c) && c != '.' }
	return owner[0] != '-' && !strings.Contains(owner, ".") && name != "." && name != ".." &&
		strings.IndexFunc(owner, other) < 0 && strings.IndexFunc(name, other) < 0
}

// validRef reports whether a branch, a tag or a commit can have that name: by git's rules, as far as they protect from what
// could be taken for something else.
func validRef(ref string) bool {
	return ref != "" && ref[0] != '-' && !strings.Contains(ref, "..") &&
		strings.IndexFunc(ref, func(c rune) bool { return c <= ' ' || c == 0x7f || strings.ContainsRune("@~^:?*[\\", c) }) < 0
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
	switch {
	case !ok || ref == "" || strings.Contains(ref, "@") || len(parts) < 2 || isSlash(rune(name[0])):
		r.errorf(n, "uses", "expected the format {owner}/{repo}[/path]@ref, ./path, $/path or docker://image, not '%s'", uses)
	case !validRepo(parts[0], parts[1]) || !validRef(ref) || slices.Contains(parts, ".."):
		r.warnf(n.pos(), "uses", "'%s' can be nowhere: no repository, folder or version has that name", uses) // GitHub says so when it runs
	}
}
