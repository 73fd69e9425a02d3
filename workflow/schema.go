package workflow

import "sync"

// shape says what may stand at a place of a file. It is the language's grammar as data; a shape is never changed
// once it is built.
type shape struct {
	name    string // what to call it in "expected …"
	allow   allow  // contexts and functions, added to those of the place above
	null    bool
	boolean bool
	number  bool
	text    textRule
	words   []string // with oneOf
	lenient bool     // a word that is not in words is a warning
	old     string   // a word that is not in words and a warning
	cond    bool     // text is an expression with or without ${{ }}
	item    *shape   // of a sequence; nil: no sequence
	maps    []*mapping
}

// textRule says which strings a shape takes.
type textRule uint8

const (
	noText textRule = iota
	anyText
	nonEmpty
	oneOf
)

// mapping is one form a mapping may have. Several forms of one shape are told apart by their keys.
type mapping struct {
	props  []prop
	loose  *shape // of the values of other keys; nil: there are none
	ignore bool   // other keys are accepted with a warning
}

type prop struct {
	name     string
	shape    *shape
	required bool
}

func (m *mapping) prop(name string) *prop {
	for i := range m.props {
		if m.props[i].name == name {
			return &m.props[i]
		}
	}
	return nil
}

// The leaves.

func str(a allow) *shape   { return &shape{name: "a string", allow: a, text: anyText} }
func full(a allow) *shape  { return &shape{name: "a non-empty string", allow: a, text: nonEmpty} }
func yesno(a allow) *shape { return &shape{name: "a boolean", allow: a, boolean: true} }
func num(a allow) *shape   { return &shape{name: "a number", allow: a, number: true} }
func word(words ...string) *shape {
	return &shape{name: "one of " + list(words), text: oneOf, words: words}
}

func scalars(a allow) *shape {
	return &shape{name: "a string, a boolean or a number", allow: a, boolean: true, number: true, text: anyText}
}

func condition(a allow) *shape {
	return &shape{name: "an expression", allow: a, text: anyText, cond: true}
}

// The branches.

func seq(name string, item *shape) *shape { return &shape{name: name, item: item} }

func dict(name string, a allow, value *shape) *shape {
	return &shape{name: name, allow: a, maps: []*mapping{{loose: value}}}
}

func object(name string, a allow, props ...prop) *shape {
	return &shape{name: name, allow: a, maps: []*mapping{{props: props}}}
}

func opt(name string, s *shape) prop { return prop{name: name, shape: s} }
func req(name string, s *shape) prop { return prop{name: name, shape: s, required: true} }

// or is a shape that takes what either of two takes; the first one's name and contexts are joined with the second's.
func or(a, b *shape) *shape {
	s := *a
	s.name = a.name + " or " + b.name
	s.allow |= b.allow
	s.null = a.null || b.null
	s.boolean = a.boolean || b.boolean
	s.number = a.number || b.number
	if s.text == noText {
		s.text, s.words = b.text, b.words
	}
	if s.item == nil {
		s.item = b.item
	}
	s.maps = append(append([]*mapping(nil), a.maps...), b.maps...)
	return &s
}

func orNull(s *shape) *shape {
	c := *s
	c.null = true
	return &c
}

// oneOrMore is a string or a sequence of them, none of them empty.
func oneOrMore(a allow) *shape {
	return or(full(a), seq("a sequence of strings", full(0)))
}

// anything takes every node; expressions are checked against the contexts of the place.
func anything() *shape {
	s := &shape{name: "anything", null: true, boolean: true, number: true, text: anyText}
	s.item = s
	s.maps = []*mapping{{loose: s}}
	return s
}

// schema holds the roots of the grammar.
type schema struct {
	workflow *shape
	action   *shape
	events   []eventKind
}

// grammar is built once, at its first use.
var grammar = sync.OnceValue(func() *schema {
	return &schema{workflow: workflowShape(), action: actionShape(), events: eventKinds()}
})

func workflowShape() *shape {
	return object("a workflow", 0,
		req("on", onShape()),
		opt("name", scalarName()),
		opt("description", str(0)),
		opt("run-name", str(allowRun)),
		opt("defaults", defaultsShape(0)),
		opt("env", dict("a mapping of environment variables", allowRun|ctxSecrets, str(0))),
		opt("permissions", permissionsShape()),
		opt("concurrency", concurrencyShape(str(allowRun))),
		req("jobs", dict("a mapping of jobs", 0, jobShape())),
	)
}

func scalarName() *shape {
	s := str(0)
	s.null = true
	return s
}

func defaultsShape(a allow) *shape {
	run := object("defaults for run steps", a, opt("shell", full(0)), opt("working-directory", full(0)))
	return object("defaults", 0, opt("run", run))
}

// permissionNames are the scopes of the token, in alphabetical order.
func permissionNames() []string {
	return []string{"actions", "artifact-metadata", "attestations", "checks", "code-quality", "contents", "copilot-requests",
		"deployments", "discussions", "drives", "id-token", "issues", "models", "packages", "pages", "pull-requests",
		"repository-projects", "security-events", "statuses", "vulnerability-alerts"}
}

func permissionsShape() *shape {
	m := &mapping{}
	for _, name := range permissionNames() {
		level := word("read", "write", "none")
		switch name {
		case "id-token":
			level = word("write", "none")
			level.old = "read" // it has always been as good as none
		case "copilot-requests":
			level = word("write", "none")
		case "models", "vulnerability-alerts":
			level = word("read", "none")
		}
		m.props = append(m.props, opt(name, level))
	}
	s := word("read-all", "write-all")
	s.name = "a mapping of permissions, 'read-all' or 'write-all'"
	s.maps = []*mapping{m}
	return s
}

func concurrencyShape(group *shape) *shape {
	return or(group, object("a mapping with group", 0,
		req("group", full(0)),
		opt("cancel-in-progress", yesno(0)),
		opt("queue", word("single", "max"))))
}

func jobShape() *shape {
	common := []prop{
		opt("name", str(allowStrategy)),
		opt("needs", oneOrMore(0)),
		opt("if", condition(allowNeeds|fnJobStatus)),
		opt("strategy", strategyShape()),
		opt("permissions", permissionsShape()),
		opt("concurrency", concurrencyShape(full(allowStrategy))),
	}
	own := append([]prop{
		req("runs-on", runsOnShape()),
		opt("timeout-minutes", num(allowStrategy)),
		opt("cancel-timeout-minutes", num(allowStrategy)),
		opt("continue-on-error", yesno(allowStrategy)),
		opt("container", containerShape(false)),
		opt("services", dict("a mapping of services", allowStrategy, containerShape(true))),
		opt("env", dict("a mapping of environment variables", allowStrategy|ctxSecrets, str(0))),
		opt("environment", environmentShape()),
		opt("outputs", dict("a mapping of outputs", 0, str(allowRunner|ctxSecrets))),
		opt("defaults", defaultsShape(allowStrategy|ctxEnv)),
		opt("steps", seq("a sequence of steps", stepShape())),
		opt("snapshot", snapshotShape()),
		opt("cache-mode", full(allowStrategy)),
	}, common...)
	secrets := dict("a mapping of secrets", 0, scalars(allowStrategy|ctxSecrets))
	secrets.text, secrets.words, secrets.name = oneOf, []string{"inherit"}, "a mapping of secrets or 'inherit'"
	call := append([]prop{
		req("uses", full(0)),
		opt("with", dict("a mapping of inputs", 0, scalars(allowStrategy))),
		opt("secrets", secrets),
		opt("cache-mode", full(allowStrategy)),
	}, common...)
	return &shape{name: "a job", maps: []*mapping{{props: own}, {props: call}}}
}

func strategyShape() *shape {
	filter := seq("a sequence of mappings", dict("a mapping", 0, anything()))
	matrix := &shape{name: "a mapping of sequences", maps: []*mapping{{
		props: []prop{opt("include", filter), opt("exclude", filter)},
		loose: seq("a sequence", anything()),
	}}}
	return object("a strategy", allowNeeds,
		opt("fail-fast", yesno(0)), opt("max-parallel", num(0)), opt("matrix", matrix))
}

func runsOnShape() *shape {
	return or(oneOrMore(allowStrategy), object("a mapping with group and labels", 0,
		opt("group", full(0)), opt("labels", oneOrMore(0))))
}

func containerShape(service bool) *shape {
	props := []prop{
		opt("image", full(0)),
		opt("options", str(0)),
		opt("env", dict("a mapping of environment variables", 0, str(allowRunner|ctxSecrets))),
		opt("ports", seq("a sequence of ports", full(0))),
		opt("volumes", seq("a sequence of volumes", full(0))),
		opt("credentials", object("a mapping with username and password", allowRun|ctxSecrets|ctxEnv,
			opt("username", full(0)), opt("password", full(0)))),
	}
	short := str(allowStrategy)
	if service {
		short = full(allowStrategy)
		props = append(props, opt("entrypoint", str(0)), opt("command", str(0)))
	}
	return or(short, object("a mapping with image", 0, props...))
}

func environmentShape() *shape {
	return or(str(allowStrategy), object("a mapping with name", 0,
		req("name", str(0)), opt("url", str(allowRunner)), opt("deployment", yesno(0))))
}

func snapshotShape() *shape {
	return or(full(allowStrategy), object("a mapping with image-name", 0,
		req("image-name", full(0)),
		opt("if", condition(allowRunner|fnStepStatus|fnHashFiles)),
		opt("version", full(0))))
}

// stepShape is a step of a job. Steps within parallel are steps, without parallel and waiting.
func stepShape() *shape {
	s := &shape{name: "a step"}
	s.maps = append(plainSteps(),
		&mapping{props: controlProps(req("wait", oneOrMore(0)))},
		&mapping{props: controlProps(req("wait-all", orNull(yesno(0))))},
		&mapping{props: controlProps(req("cancel", full(0)))},
		&mapping{props: []prop{req("parallel", seq("a sequence of steps", &shape{name: "a step", maps: plainSteps()}))}})
	return s
}

func plainSteps() []*mapping {
	common := func(own ...prop) *mapping {
		return &mapping{props: append(own,
			opt("name", str(allowSteps)),
			opt("id", full(0)),
			opt("if", condition((allowRunner|fnStepStatus|fnHashFiles))),
			opt("timeout-minutes", num(allowSteps)),
			opt("continue-on-error", yesno(allowSteps)),
			opt("env", dict("a mapping of environment variables", allowSteps, str(0))),
			opt("background", yesno(0)))}
	}
	return []*mapping{
		common(req("run", str(allowSteps)), opt("working-directory", str(allowSteps)), opt("shell", full(0))),
		common(req("uses", full(0)), opt("with", dict("a mapping of inputs", allowSteps, str(0)))),
	}
}

// controlProps are the keys of a step that starts no process of its own.
func controlProps(own prop) []prop {
	return []prop{own,
		opt("name", str(allowSteps)),
		opt("id", full(0)),
		opt("continue-on-error", yesno(allowSteps)),
	}
}
