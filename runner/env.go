package runner

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// Bounds of what a job collects. Linux takes 2 MiB of arguments and environment.
const (
	maxEnv  = 2 << 20 // bytes of environment
	maxPath = 1000    // directories in front of PATH
)

// defaultPath is PATH where the machine's own environment has none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// vars are environment variables in the order in which they were first set.
type vars struct {
	list  []pair
	index map[string]int // by name
	bytes int
}

func (v *vars) set(name, value string) {
	if i, ok := v.index[name]; ok {
		v.bytes += len(value) - len(v.list[i].Value)
		v.list[i].Value = value
		return
	}
	if v.index == nil {
		v.index = map[string]int{}
	}
	v.index[name] = len(v.list)
	v.bytes += len(name) + len(value)
	v.list = append(v.list, pair{name, value})
}

// jobEnv evaluates the env of the workflow and of the job. Neither sees itself.
func (r *run) jobEnv() error {
	job := r.job.Job
	shared, err := r.evalPairs("env", r.job.Plan.Env, r.top, nil, job.Pos)
	if err != nil {
		return err
	}
	own, err := r.evalPairs("env", job.Env, r.top, nil, job.Pos)
	if err != nil {
		return err
	}
	for _, p := range slices.Concat(shared, own) {
		r.top.world.env.set(p.Name, p.Value)
	}
	return nil
}

// evalPairs evaluates the entries of an env or with mapping. In the place of workflow.Insert stand the entries of the
// mapping that its value evaluates to.
func (r *run) evalPairs(key string, entries []workflow.EnvVar, sc *scope, u *unit, pos workflow.Pos) ([]pair, error) {
	var list []pair
	for _, e := range entries {
		if e.Name != workflow.Insert {
			value, err := r.text(e.Value, sc, u, pos, key+"."+e.Name)
			if err != nil {
				return nil, err
			}
			list = append(list, pair{e.Name, value})
			continue
		}
		v, err := r.eval(e.Value, sc, u, pos, key)
		if err != nil {
			return nil, err
		}
		if v.Object() == nil && v.Kind() != expr.KindNull {
			return nil, workflowError(r.file(sc), pos, "%s: a mapping was expected, and '%s' is none", key, excerpt(e.Value))
		}
		if v.Object() == nil {
			continue
		}
		for _, k := range v.Object().Keys() {
			inner, _, err := v.Object().Get(k)
			if err != nil {
				return nil, err
			}
			if inner.Object() != nil || inner.Kind() == expr.KindArray {
				return nil, workflowError(r.file(sc), pos, "%s: '%s' is neither a string nor a number", key, excerpt(k))
			}
			list = append(list, pair{k, inner.Text()})
		}
	}
	return list, nil
}

// envContext is the env context of a step: the job's, then what the steps that use the actions around it add,
// then its own. Case makes a difference, as it does to processes.
func (r *run) envContext(sc *scope, u *unit) *expr.Object {
	o := expr.NewExactObject()
	for _, list := range r.envLayers(sc, u) {
		for _, p := range list {
			o.Set(p.Name, expr.Str(p.Value))
		}
	}
	return o
}

func (r *run) envLayers(sc *scope, u *unit) [][]pair {
	layers := [][]pair{sc.here().env.list, sc.env}
	if u != nil {
		layers = append(layers, u.env)
	}
	return layers
}

// isGitHubEnv reports whether an entry of the github context is seen by processes, as GITHUB_*.
func isGitHubEnv(name string) bool {
	switch name {
	case "action", "action_path", "action_ref", "action_repository", "actor", "actor_id", "api_url", "artifacts", "artifacts_list", "base_ref", "env",
		"event_name", "event_path", "graphql_url", "head_ref", "job", "output", "path", "ref", "ref_name", "ref_protected",
		"ref_type", "repository", "repository_id", "repository_owner", "repository_owner_id", "retention_days",
		"run_attempt", "run_id", "run_number", "server_url", "sha", "state", "step_summary", "triggering_actor",
		"workflow", "workflow_ref", "workflow_sha", "workspace":
		return true
	}
	return false
}

// isDefaultVar reports whether the runner itself sets a variable for every process.
func isDefaultVar(name string) bool {
	switch name {
	case "GITHUB_ACTIONS", "RUNNER_OS", "RUNNER_ARCH", "RUNNER_NAME", "RUNNER_TEMP", "RUNNER_TOOL_CACHE",
		"RUNNER_WORKSPACE", "RUNNER_ENVIRONMENT", "AGENT_TOOLSDIRECTORY":
		return true
	}
	entry, ok := strings.CutPrefix(name, "GITHUB_")
	return ok && isGitHubEnv(strings.ToLower(entry))
}

// processEnv is the whole environment of a process of a site, sorted. extra wins over everything but nothing of it is the
// job's.
func (r *run) processEnv(u *unit, at site, isAction bool, extra []pair) ([]string, error) {
	c, see := r.config, at.inside
	m := at.base()
	for name, value := range c.ActionEnv {
		// The tokens of the services are for actions; a plain script gets only what asks for an identity token.
		if isAction || strings.HasPrefix(name, "ACTIONS_ID_TOKEN_REQUEST_") {
			m[name] = value
		}
	}
	for _, list := range r.envLayers(u.sc, u) {
		for _, p := range list {
			m[p.Name] = p.Value
		}
	}
	for k, v := range r.static.github {
		if isGitHubEnv(k) {
			m["GITHUB_"+strings.ToUpper(k)] = expr.FromAny(v).Text()
		}
	}
	for _, p := range r.stepGitHub(u.sc, u) {
		m["GITHUB_"+strings.ToUpper(p.Name)] = p.Value
	}
	for k, v := range map[string]string{
		"GITHUB_ACTIONS": "true", "RUNNER_OS": c.Runner.OS, "RUNNER_ARCH": c.Runner.Arch, "RUNNER_NAME": c.Runner.Name,
		"RUNNER_TEMP": see(c.Dirs.Temp), "RUNNER_TOOL_CACHE": see(c.Dirs.Tools), "RUNNER_WORKSPACE": see(path.Dir(c.Dirs.Workspace)),
		"RUNNER_ENVIRONMENT": c.Runner.Environment, "AGENT_TOOLSDIRECTORY": see(c.Dirs.Tools),
	} {
		m[k] = v
	}
	if r.job.Debug {
		m["RUNNER_DEBUG"] = "1"
	}
	for _, p := range extra {
		m[p.Name] = p.Value
	}
	if before, ok := m["PATH"]; ok && len(u.sc.here().path) > 0 {
		dirs := slices.Clone(u.sc.here().path)
		slices.Reverse(dirs)
		m["PATH"] = strings.Join(append(dirs, before), ":")
	}
	env := make([]string, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if err := checkVar(name, m[name]); err != nil {
			return nil, err
		}
		env = append(env, name+"="+m[name])
	}
	return env, nil
}

// checkVar refuses what no process can be given.
func checkVar(name, value string) error {
	switch {
	case name == "" || strings.ContainsAny(name, "=\x00"):
		return userError("environment variable '%s' has a name that cannot be set", excerpt(name))
	case strings.Contains(value, "\x00"):
		return userError("environment variable '%s' holds a NUL byte", excerpt(name))
	}
	return nil
}

// setEnv sets a variable for the steps that follow. NODE_OPTIONS would run code in every action and is refused.
func (u *unit) setEnv(name, value string) error {
	r := u.run
	if strings.EqualFold(name, "NODE_OPTIONS") {
		r.error(u.rec, "Can't store NODE_OPTIONS output parameter using '$GITHUB_ENV' command.")
		return nil
	}
	if err := checkVar(name, value); err != nil {
		return err
	}
	if isDefaultVar(name) {
		r.log(u.rec, "##[warning]"+name+" is a default variable: processes do not see what '$GITHUB_ENV' sets it to")
	}
	return u.sc.here().change(func(w *world) error {
		w.env.set(name, value)
		if w.env.bytes > maxEnv {
			return userError("the job's environment is larger than %d bytes", maxEnv)
		}
		return nil
	})
}

// addPath puts a directory in front of PATH for the steps that follow.
func (u *unit) addPath(dir string) error {
	if strings.Contains(dir, "\x00") {
		return userError("a directory for PATH holds a NUL byte")
	}
	return u.sc.here().change(func(w *world) error {
		w.path = slices.DeleteFunc(w.path, func(d string) bool { return d == dir })
		if len(w.path) >= maxPath {
			return userError("more than %d directories are added to PATH", maxPath)
		}
		w.path = append(w.path, dir)
		return nil
	})
}

// allowsUnsecure reports whether the workflow, not a step's output, allows the set-env and add-path commands.
func (u *unit) allowsUnsecure() bool {
	const name = "ACTIONS_ALLOW_UNSECURE_COMMANDS"
	for _, p := range slices.Concat(u.env, u.sc.env) {
		if p.Name == name {
			return strings.EqualFold(p.Value, "true")
		}
	}
	for _, e := range slices.Concat(u.run.job.Job.Env, u.run.job.Plan.Env) {
		if e.Name == name {
			return strings.EqualFold(e.Value, "true")
		}
	}
	return false
}
