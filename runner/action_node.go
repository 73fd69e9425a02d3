package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// node runs the main part of a JavaScript action. The pre part of a local action never runs, as on GitHub: the action
// comes only with the checkout.
func (r *run) node(u *unit) error {
	inputs, err := r.inputs(u)
	if err != nil {
		return err
	}
	r.usesHeader(u, shownInputs(inputs))
	runs := u.action.meta.Runs
	if runs.Pre != "" && u.action.repo == "" {
		r.warn(u.rec, fmt.Sprintf("`pre` execution is not supported for local action from '%s'", u.src.Uses))
	}
	u.sc.register(u)
	return r.nodeProcess(u, runs.Main, inputs)
}

// nodeProcess runs one script of a JavaScript action.
func (r *run) nodeProcess(u *unit, script string, inputs []pair) error {
	node, err := r.nodeFor(u)
	if err != nil {
		return err
	}
	return r.process(u, process{
		args:   [][]string{{r.site.inside(node), r.site.inside(path.Join(u.action.dir, script))}},
		dir:    r.workdir(""),
		env:    r.actionEnv(u, inputs),
		action: true,
		node:   true,
	})
}

// actionEnv is how an action is told its inputs, and what its earlier parts have saved.
func (r *run) actionEnv(u *unit, inputs []pair) []pair {
	var env []pair
	byName := map[string]string{}
	for _, p := range inputs {
		byName[strings.ToLower(p.Name)] = p.Value
		env = append(env, pair{"INPUT_" + strings.ToUpper(strings.ReplaceAll(p.Name, " ", "_")), p.Value})
	}
	for _, p := range u.state.list {
		env = append(env, pair{"STATE_" + p.Name, p.Value})
	}
	if r.config.InputEnv != nil {
		for name, value := range r.config.InputEnv(byName) {
			env = append(env, pair{name, value})
		}
	}
	return env
}

// nodeFor finds the node runtime for an action. Actions for one that GitHub has retired run on the oldest that is there.
func (r *run) nodeFor(u *unit) (string, error) {
	using := u.action.meta.Runs.Using
	wanted := []string{using}
	switch using {
	case "node12", "node14", "node16":
		wanted = []string{using, "node20", "node24"}
	case "node20":
		wanted = []string{using, "node24"}
	}
	for _, name := range wanted {
		file, err := r.nodeOf(u, name)
		if err != nil {
			return "", err
		}
		if file != "" {
			if name != using {
				r.debug(u.rec, using+" is not on this machine; the action runs on "+name)
			}
			return file, nil
		}
	}
	return "", workflowError(u.action.file(), workflow.Pos{}, "runs.using: this machine has no %s", excerpt(using))
}

// nodeOf finds the node runtime of a name, "" if the machine has none.
func (r *run) nodeOf(u *unit, name string) (file string, err error) {
	if file = r.config.Nodes[name]; file != "" || r.config.Node == nil {
		return file, nil
	}
	ctx, done := r.clock.cancellable(u.limit, u.survives)
	defer done()
	r.unlocked(func() { file, err = r.config.Node(ctx, name) })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil && ctx.Err() != nil:
		return "", interrupted(ctx)
	case err != nil:
		return "", &tgr.Error{Op: "job.run", Code: tgr.Unavailable, Message: name + ", which the action runs on, could not be fetched", Err: err}
	}
	return file, nil
}
