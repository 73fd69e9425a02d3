package runner

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/workflow"
)

// The stages of a docker action.
const (
	stagePre  = "pre"
	stageMain = "main"
	stagePost = "post"
)

// dockerStep is the action of a step that uses an image by name.
func (r *run) dockerStep(u *unit, image string) *action {
	runs := workflow.Runs{Using: "docker", Image: "docker://" + image}
	return &action{meta: &workflow.Action{File: r.file(u.sc), Runs: runs}, bare: true}
}

// docker runs the main part of a docker action.
func (r *run) docker(u *unit) error {
	inputs, err := r.inputs(u)
	if err != nil {
		return err
	}
	r.usesHeader(u, shownInputs(inputs))
	if u.action.meta.Runs.PreEntrypoint != "" && u.action.repo == "" {
		r.warn(u.rec, fmt.Sprintf("`pre` execution is not supported for local action from '%s'", u.src.Uses))
	}
	u.sc.register(u)
	return r.dockerProcess(u, stageMain, inputs)
}

// dockerProcess runs one part of a docker action in a container of its own.
func (r *run) dockerProcess(u *unit, stage string, inputs []pair) error {
	e, err := r.needEngine(u.src.Pos, r.file(u.sc), "'"+excerpt(u.src.Uses)+"' runs in a container")
	if err != nil {
		return err
	}
	ctx, done := r.clock.cancellable(u.limit, u.survives)
	defer done()
	if ctx.Err() != nil {
		return interrupted(ctx)
	}
	image, err := e.imageOf(ctx, u)
	if err != nil {
		if ctx.Err() != nil && !isOurs(err) {
			return interrupted(ctx)
		}
		return err
	}
	runs := u.action.meta.Runs
	at := &actionBox{mounts: r.actionMounts(), engine: e, image: image}
	at.mounts = append(at.mounts, seenBy(r.site, at.mounts)...)
	switch stage {
	case stagePre:
		at.entrypoint = runs.PreEntrypoint
	case stagePost:
		at.entrypoint = runs.PostEntrypoint
	default:
		if at.entrypoint = runs.Entrypoint; at.entrypoint == "" {
			at.entrypoint, _ = lookup(inputs, "entryPoint")
		}
	}
	if at.args, err = r.dockerArgs(u, inputs); err != nil {
		return err
	}
	env, err := r.dockerEnv(u, inputs)
	if err != nil {
		return err
	}
	return r.process(u, process{dir: "/github/workspace", env: env, action: true, site: at})
}

// dockerArgs are the arguments: the action's own, with its inputs, or what the step says.
func (r *run) dockerArgs(u *unit, inputs []pair) ([]string, error) {
	runs := u.action.meta.Runs
	if runs.Args == nil {
		text, _ := lookup(inputs, "args")
		return splitArgs(text), nil
	}
	var list []string
	sc := r.inputScope(u, inputs)
	for _, arg := range runs.Args {
		text, err := r.text(arg, sc, nil, workflow.Pos{}, "runs.args")
		if err != nil {
			return nil, err
		}
		list = append(list, text) // an empty one keeps its place
	}
	return list, nil
}

// inputScope is where the texts of a docker action's metadata are evaluated.
func (r *run) inputScope(u *unit, inputs []pair) *scope {
	return &scope{parent: u.sc, action: u.action, inputs: inputsContext(inputs), steps: expr.NewObject(), env: slices.Concat(u.sc.env, u.env), depth: u.sc.depth + 1}
}

// dockerEnv is what an action adds to the environment: its inputs and state, and what its metadata says where the workflow
// says nothing.
func (r *run) dockerEnv(u *unit, inputs []pair) ([]pair, error) {
	own, err := r.evalPairs("runs.env", u.action.meta.Runs.Env, r.inputScope(u, inputs), nil, workflow.Pos{})
	if err != nil {
		return nil, err
	}
	var env []pair
	set := r.envContext(u.sc, u)
	for _, p := range own {
		if !set.Has(p.Name) {
			env = append(env, p)
		}
	}
	env = append(env, r.actionEnv(u, inputs)...)
	return append(env, pair{"HOME", "/github/home"}), nil // whatever the workflow has for its scripts
}

// imageOf gets the image of an action: pulled by name, or built of its Dockerfile, once per job.
func (e *engine) imageOf(ctx context.Context, u *unit) (string, error) {
	spec := u.action.meta.Runs.Image
	if image, ok := strings.CutPrefix(spec, "docker://"); ok {
		if strings.HasPrefix(image, "-") || strings.ContainsAny(image, " \n\x00") || image == "" {
			return "", workflowError(u.action.file(), workflow.Pos{}, "'%s' is no image", excerpt(image))
		}
		return image, e.pull(ctx, u.rec, image, "", "")
	}
	file := path.Join(u.action.dir, spec)
	if file != u.action.dir && !strings.HasPrefix(file, u.action.dir+"/") {
		return "", workflowError(u.action.file(), workflow.Pos{}, "runs.image: '%s' is outside the action", excerpt(spec))
	}
	if image := e.built[file]; image != "" {
		return image, nil
	}
	image := "localhost/" + e.unique("action")
	e.run.log(u.rec, "##[group]Building docker image")
	err := e.show(ctx, u.rec, e.cmd(nil, "build", "-t", image, "-f", file, path.Dir(file)))
	e.run.log(u.rec, "##[endgroup]")
	if err != nil {
		return "", err
	}
	e.built[file] = image
	return image, nil
}

// actionBox is the container of one part of a docker action.
type actionBox struct {
	mounts
	engine     *engine
	image      string
	entrypoint string
	args       []string
}

// seenBy are mounts under the names that processes of the job use, which in a container job are not the machine's.
func seenBy(s site, ms mounts) mounts {
	var more mounts
	for _, m := range ms {
		if seen := s.inside(m.source); seen != m.source {
			more = append(more, mount{source: seen, target: m.target})
		}
	}
	return more
}

func (b *actionBox) base() map[string]string {
	return map[string]string{"CI": "true"}
}

// exec runs the container to its end, and leaves nothing of it.
func (b *actionBox) exec(ctx context.Context, u *unit, p process, env []string, out io.Writer) (guest.Exit, error) {
	e := b.engine
	name := e.unique("action")
	env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "ACTIONS_CACHE_SERVICE_V2=") })
	for i, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		env[i] = k + "=" + b.inside(v)
	}
	flags, own := envFlags(env)
	args := append([]string{"run", "--rm", "--name", name, "--label", "tgr", "--workdir", p.dir}, flags...)
	if b.entrypoint != "" {
		args = append(args, "--entrypoint", b.entrypoint)
	}
	args = append(args, e.network()...)
	for _, m := range e.run.actionMounts() {
		args = append(args, "-v", m.flag())
	}
	args = e.withSocket(args)
	args = append(append(args, b.image), b.args...)
	exit, err := e.run.config.Machine.Exec(ctx, e.cmd(own, args...), out)
	if ctx.Err() != nil {
		e.remove(name)
	}
	exit.CPU = 0 // as in a box
	return exit, err
}
