package workflow

import "strings"

// Action is an action's metadata: action.yml.
type Action struct {
	File    string
	Name    string
	Inputs  []Input  // a default may hold ${{ }}
	Outputs []EnvVar // name and value; the value is an expression in composite actions and "" elsewhere
	Runs    Runs
}

// Runs says how an action runs.
type Runs struct {
	Using          string // "node20", "node24", "composite" or "docker", in lower case
	Main           string
	Pre            string
	PreIf          string // an expression; always() where the file does not say
	Post           string
	PostIf         string // an expression; always() where the file does not say
	Image          string // Dockerfile, a path to one, or docker://image
	Entrypoint     string
	PreEntrypoint  string
	PostEntrypoint string
	Args           []string // may hold ${{ }}, of the inputs context
	Env            []EnvVar // may hold ${{ }}
	Steps          []Step   // of a composite action
}

// actionShape is the grammar of action.yml. Unknown keys are ignored, as GitHub does.
func actionShape() *shape {
	input := dict("an input", 0, anything())
	input.maps[0].props = []prop{
		opt("default", str(ctxGitHub|ctxStrategy|ctxMatrix|ctxJob|ctxRunner|fnHashFiles)),
		opt("required", anything()), opt("description", anything()), opt("deprecationMessage", anything()),
	}
	output := dict("an output", 0, anything())
	output.maps[0].props = []prop{
		opt("value", str(ctxGitHub|ctxStrategy|ctxMatrix|ctxSteps|ctxInputs|ctxJob|ctxRunner|ctxEnv)),
		opt("description", anything()),
	}
	root := dict("an action", 0, anything())
	root.maps[0].props = []prop{
		opt("name", str(0)), opt("description", anything()), opt("author", anything()), opt("branding", anything()),
		opt("inputs", orNull(dict("a mapping of inputs", 0, orNull(input)))),
		opt("outputs", orNull(dict("a mapping of outputs", 0, orNull(output)))),
		req("runs", runsShape()),
	}
	return root
}

func runsShape() *shape {
	when := condition(ctxGitHub | ctxInputs | ctxStrategy | ctxMatrix | ctxSteps | ctxJob | ctxRunner | ctxEnv | fnStepStatus | fnHashFiles)
	return object("how the action runs", 0,
		req("using", full(0)),
		opt("main", full(0)), opt("pre", full(0)), opt("pre-if", when), opt("post", full(0)), opt("post-if", when),
		opt("image", full(0)), opt("entrypoint", full(0)), opt("pre-entrypoint", full(0)), opt("post-entrypoint", full(0)),
		opt("args", seq("a sequence of arguments", str(ctxInputs))),
		opt("env", dict("a mapping of environment variables", ctxInputs, str(0))),
		opt("steps", seq("a sequence of steps", compositeStep())),
		opt("plugin", full(0)))
}

func compositeStep() *shape {
	common := func(own ...prop) *mapping {
		return &mapping{props: append(own,
			opt("name", str(allowComposite)),
			opt("id", full(0)),
			opt("if", condition(allowComposite|fnStepStatus)),
			opt("continue-on-error", yesno(allowComposite)),
			opt("timeout-minutes", num(allowComposite)),
			opt("env", dict("a mapping of environment variables", allowComposite, str(0))))}
	}
	return &shape{name: "a step", maps: []*mapping{
		common(req("run", str(allowComposite)), req("shell", str(allowComposite)), opt("working-directory", str(allowComposite))),
		common(req("uses", full(0)), opt("with", dict("a mapping of inputs", allowComposite, str(0)))),
	}}
}

// ParseAction reads an action's metadata. The Action is nil only if nothing of it is usable.
func ParseAction(file string, src []byte) (*Action, []Problem) {
	r := newReader(file, src)
	root := r.document(src, Limits{}.orDefaults())
	if root == nil {
		return nil, r.done()
	}
	r.read(root, grammar().action, 0)
	if root.kind != kindMap {
		return nil, r.done()
	}
	a := &Action{File: file, Name: textOf(root.get("name")), Runs: r.runs(root.get("runs"))}
	for _, p := range entries(root.get("inputs")) {
		in := Input{
			Name: p.key.text, Description: textOf(p.value.get("description")),
			Required: textOf(p.value.get("required")) == "true", Deprecation: textOf(p.value.get("deprecationMessage")),
		}
		if d := p.value.get("default"); d != nil && !d.bad {
			in.Default, in.HasDefault = textOf(d), true
		}
		a.Inputs = append(a.Inputs, in)
	}
	for _, p := range entries(root.get("outputs")) {
		a.Outputs = append(a.Outputs, EnvVar{Name: p.key.text, Value: textOf(p.value.get("value"))})
	}
	r.actionReferences(root, a)
	return a, r.done()
}

func (r *reader) runs(n *node) Runs {
	if n == nil || n.kind != kindMap {
		return Runs{}
	}
	out := Runs{
		Using: strings.ToLower(textOf(n.get("using"))),
		Main:  textOf(n.get("main")), Pre: textOf(n.get("pre")), Post: textOf(n.get("post")),
		PreIf: hookCondition(n.get("pre-if")), PostIf: hookCondition(n.get("post-if")),
		Image: textOf(n.get("image")), Entrypoint: textOf(n.get("entrypoint")),
		PreEntrypoint: textOf(n.get("pre-entrypoint")), PostEntrypoint: textOf(n.get("post-entrypoint")),
		Args: texts(n.get("args")), Env: vars(n.get("env")),
	}
	need := func(key, value string) {
		if value == "" {
			r.follow(n.pos(), "required", "'%s' is required for an action that runs with '%s'", key, out.Using)
		}
	}
	switch {
	case out.Using == "composite":
		if n.get("steps") == nil {
			need("steps", "")
		}
		out.Steps = r.steps(n.get("steps"))
	case out.Using == "docker":
		need("image", out.Image)
	case strings.HasPrefix(out.Using, "node"):
		need("main", out.Main)
	case out.Using != "" && n.get("plugin") == nil:
		r.errorf(n.get("using"), "unexpected-value", "unexpected value '%s'; expected 'node20', 'node24', 'composite' or 'docker'", out.Using)
	}
	return out
}

// hookCondition is the condition of a pre or post step, which unlike that of a step has no implicit success().
func hookCondition(n *node) string {
	text := strings.TrimSpace(textOf(n))
	if text == "" {
		return "always()"
	}
	if isWholeExpression(n) {
		text = strings.TrimSpace(text[len("${{") : len(text)-len("}}")])
	}
	return text
}
