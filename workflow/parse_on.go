package workflow

import (
	"slices"
	"strings"
	"time"
)

// events converts on:. The document has been checked against the grammar; what is left are rules between keys.
func (r *reader) events(n *node, w *Workflow) {
	switch n.kind {
	case kindSeq:
		for _, item := range n.items {
			r.event(w, item, nil)
		}
	case kindMap:
		for _, p := range n.pairs {
			r.event(w, p.key, p.value)
		}
	default:
		r.event(w, n, nil)
	}
	if len(w.Events) == 0 && !broken(n) {
		r.follow(n.pos(), "events", "at least one event is needed")
	}
}

func (r *reader) event(w *Workflow, name, config *node) {
	kind, ok := eventNamed(name.text)
	if !ok || w.On(name.text) != nil {
		return
	}
	e := Event{Name: name.text, Pos: name.pos()}
	switch e.Name {
	case "schedule":
		e.Schedules = r.schedules(config)
		if config == nil {
			r.warnf(e.Pos, "events", "schedule without a cron entry starts nothing")
		}
	case "workflow_dispatch":
		r.promote(config)
		r.emptyInputs(config.get("inputs"))
		w.Dispatch = r.dispatchInputs(config.get("inputs"))
	case "workflow_call":
		w.Inputs = r.callInputs(config.get("inputs"))
		w.Secrets = secretDefs(config.get("secrets"))
		w.Outputs = callOutputs(config.get("outputs"))
	default:
		r.filters(&e, kind, config)
	}
	w.Events = append(w.Events, e)
}

func (r *reader) filters(e *Event, kind eventKind, config *node) {
	if config == nil || config.kind != kindMap {
		return
	}
	for _, f := range []struct {
		key string
		to  *[]string
	}{
		{"types", &e.Types}, {"branches", &e.Branches}, {"branches-ignore", &e.BranchesIgnore}, {"tags", &e.Tags},
		{"tags-ignore", &e.TagsIgnore}, {"paths", &e.Paths}, {"paths-ignore", &e.PathsIgnore},
		{"workflows", &e.Workflows}, {"names", &e.Names}, {"versions", &e.Versions},
	} {
		n := config.get(f.key)
		if n == nil {
			continue
		}
		if n.kind == kindNull || n.kind == kindSeq && len(n.items) == 0 {
			r.warnf(n.pos(), "events", "'%s' is empty and filters nothing", f.key)
			continue
		}
		known := slices.Contains(kind.filters, f.key) || f.key == "types" && kind.types != nil
		if !known {
			r.warnf(config.key(f.key).pos(), "events", "'%s' has no effect on '%s'", f.key, e.Name)
			continue
		}
		*f.to = texts(n)
		if !slices.Contains([]string{"types", "workflows"}, f.key) {
			r.patterns(n)
		}
	}
	for _, f := range []string{"branches", "tags", "paths"} {
		if a, b := config.get(f), config.get(f+"-ignore"); a != nil && b != nil && a.kind != kindNull && b.kind != kindNull {
			r.warnf(b.pos(), "events", "'%s' and '%s-ignore' cannot be used for the same event; GitHub refuses to start it", f, f)
		}
	}
}

// patterns checks the filter patterns of a key.
func (r *reader) patterns(n *node) {
	items := n.items
	if n.scalar() {
		items = []*node{n}
	}
	for _, item := range items {
		if item.bad || !item.scalar() {
			continue
		}
		if _, err := compilePattern(strings.TrimPrefix(item.text, "!")); err != nil {
			r.errorf(item, "pattern", "the pattern '%s' is not valid: %v", item.text, err)
		}
	}
	if len(items) > 0 && !slices.ContainsFunc(items, func(i *node) bool { return !strings.HasPrefix(i.text, "!") }) {
		r.warnf(n.pos(), "pattern", "there are only patterns with '!', so nothing matches; put a pattern without it before them")
	}
}

func (r *reader) schedules(n *node) []Schedule {
	if n == nil || n.kind != kindSeq {
		return nil
	}
	var out []Schedule
	for _, item := range n.items {
		c := item.get("cron")
		if c == nil || c.bad {
			continue
		}
		s := Schedule{Cron: c.text, Pos: c.pos()}
		cron, err := ParseCron(c.text)
		if err != nil {
			r.errorf(c, "cron", "%v", err)
			continue
		}
		if cron.Shortest() < MinCronInterval {
			r.warnf(c.pos(), "cron", "the shortest interval is five minutes; '%s' starts less often than it says", c.text)
		}
		if z := item.get("timezone"); z != nil && !z.bad {
			s.Timezone = z.text
			if _, err := time.LoadLocation(z.text); err != nil || z.text == "Local" {
				r.errorf(z, "cron", "'%s' is not the name of a time zone, such as 'Europe/Berlin'", z.text)
			}
		}
		out = append(out, s)
	}
	return out
}

// promote turns what was overlooked on workflow_dispatch into errors if its inputs are wrong: then the file was
// written against another grammar, and all of it is shown.
func (r *reader) promote(config *node) {
	if config == nil || config.kind != kindMap || !broken(config.get("inputs")) {
		return
	}
	for _, p := range config.pairs {
		for i := range r.problems {
			q := &r.problems[i]
			if q.Rule == "unexpected-key" && q.Line == p.key.line && q.Column == p.key.col {
				q.Severity = SeverityError
			}
		}
	}
}

// emptyInputs warns of what GitHub's parsers disagree about: inputs that are null, as a whole or one of them.
func (r *reader) emptyInputs(n *node) {
	if n != nil && n.kind == kindNull {
		r.warnf(n.pos(), "inputs", "'inputs' is empty")
	}
	for _, p := range entries(n) {
		if p.value.kind == kindNull {
			r.warnf(p.value.pos(), "inputs", "the input '%s' is empty; it is taken as an optional string", p.key.text)
		}
	}
}

func broken(n *node) bool {
	if n == nil || n.bad {
		return n != nil
	}
	return slices.ContainsFunc(n.items, broken) ||
		slices.ContainsFunc(n.pairs, func(p pair) bool { return p.key.bad || broken(p.value) })
}

func (r *reader) dispatchInputs(n *node) []Input {
	var out []Input
	for _, p := range entries(n) {
		in := r.input(p)
		if in.Type == "" {
			in.Type = "string"
		}
		options := p.value.get("options")
		in.Options = texts(options)
		switch {
		case in.Type == "choice" && len(in.Options) == 0:
			r.follow(p.value.pos(), "inputs", "the input '%s' is a choice and needs options", in.Name)
		case in.Type == "choice" && in.HasDefault && !slices.Contains(in.Options, in.Default):
			r.warnf(p.value.get("default").pos(), "inputs", "the default '%s' is not one of the options: %s", in.Default, list(in.Options))
		case in.Type != "choice" && options != nil:
			r.warnf(options.pos(), "inputs", "options have no effect on an input of type %s", in.Type)
		}
		out = append(out, in)
	}
	return out
}

func (r *reader) callInputs(n *node) []Input {
	var out []Input
	for _, p := range entries(n) {
		out = append(out, r.input(p))
	}
	return out
}

// input converts what inputs of workflow_dispatch and workflow_call have in common.
func (r *reader) input(p pair) Input {
	v := p.value
	in := Input{
		Name: p.key.text, Type: textOf(v.get("type")), Description: textOf(v.get("description")),
		Required: boolOf(v.get("required")), Deprecation: textOf(v.get("deprecationMessage")),
	}
	if d := v.get("default"); d != nil && d.kind != kindNull {
		in.Default, in.HasDefault = d.text, true
		if !isExpression(d) && !d.bad {
			if _, err := typed(in.Type, d.text); err != nil {
				r.follow(d.pos(), "inputs", "the default of '%s' %v", in.Name, err)
			}
		}
	}
	return in
}

func secretDefs(n *node) []SecretDef {
	var out []SecretDef
	for _, p := range entries(n) {
		out = append(out, SecretDef{Name: p.key.text, Required: boolOf(p.value.get("required"))})
	}
	return out
}

func callOutputs(n *node) []EnvVar {
	var out []EnvVar
	for _, p := range entries(n) {
		if v := p.value.get("value"); v != nil {
			out = append(out, EnvVar{Name: p.key.text, Value: v.text})
		}
	}
	return out
}

// entries are the pairs of a mapping; none of anything else.
func entries(n *node) []pair {
	if n == nil || n.kind != kindMap {
		return nil
	}
	return n.pairs
}

// texts are the strings of a scalar or of a sequence of scalars.
func texts(n *node) []string {
	switch {
	case n == nil || n.kind == kindMap:
		return nil
	case n.kind == kindSeq:
		out := make([]string, 0, len(n.items))
		for _, item := range n.items {
			if item.scalar() {
				out = append(out, item.text)
			}
		}
		return out
	}
	return []string{n.text}
}

func textOf(n *node) string {
	if n == nil || !n.scalar() {
		return ""
	}
	return n.text
}

func boolOf(n *node) bool { return n != nil && n.kind == kindBool && n.bool }
