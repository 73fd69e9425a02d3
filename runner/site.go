package runner

import (
	"context"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/terraphim/tgr/guest"
)

// site is where the processes of a step run: the machine itself, the container of the job, or one of a docker action.
type site interface {
	// base is what a process has in its environment before anything of the job's.
	base() map[string]string
	// inside is where a process there sees a path of the machine.
	inside(p string) string
	// outside undoes inside; a path that the machine does not have stays.
	outside(p string) string
	// exec runs a process; its environment is whole, and its paths are those of the site.
	exec(ctx context.Context, u *unit, p process, env []string, out io.Writer) (guest.Exit, error)
}

// onMachine is the machine itself.
type onMachine struct{ run *run }

func (m onMachine) base() map[string]string {
	c := m.run.config
	env := map[string]string{"PATH": defaultPath, "HOME": c.Dirs.Home, "CI": "true"}
	for k, v := range c.Env {
		env[k] = v
	}
	return env
}

func (onMachine) inside(p string) string { return p }

func (onMachine) outside(p string) string { return p }

// exec runs the first command line whose program is there. A job that has replaced PATH has not lost its shells, which are
// also looked for where they were before.
func (m onMachine) exec(ctx context.Context, _ *unit, p process, env []string, out io.Writer) (guest.Exit, error) {
	c := m.run.config
	lines, own := p.args, m.base()["PATH"]
	if !slices.ContainsFunc(env, func(kv string) bool {
		v, ok := strings.CutPrefix(kv, "PATH=")
		return ok && (v == own || strings.HasSuffix(v, ":"+own))
	}) {
		lines = along(own, lines)
	}
	var first guest.Exit
	for i, line := range lines {
		exit, err := c.Machine.Exec(ctx, guest.Cmd{Args: line, Dir: p.dir, Env: env, User: c.User, Grace: c.Limits.Grace}, out)
		if err != nil || exit.Started {
			return exit, err
		}
		if i == 0 {
			first = exit
		}
	}
	return first, nil
}

// along adds to each command line those by which its program is found along a PATH.
func along(path string, lines [][]string) [][]string {
	var out [][]string
	for _, line := range lines {
		out = append(out, line)
		if strings.Contains(line[0], "/") {
			continue
		}
		for _, dir := range strings.Split(path, ":") {
			out = append(out, append([]string{dir + "/" + line[0]}, line[1:]...))
		}
	}
	return out
}

// mount is a directory of the machine that a container sees.
type mount struct {
	source string // in the machine
	target string // in the container
	ro     bool
}

// flag is the mount as the engine's -v wants it.
func (m mount) flag() string {
	s := m.source + ":" + m.target
	if m.ro {
		s += ":ro"
	}
	return s
}

// mounts translate paths. Of two that hold a path, the longer one counts.
type mounts []mount

func (ms mounts) inside(p string) string {
	return ms.translate(p, func(m mount) (from, to string) { return m.source, m.target })
}

func (ms mounts) outside(p string) string {
	return ms.translate(p, func(m mount) (from, to string) { return m.target, m.source })
}

func (ms mounts) translate(p string, way func(mount) (from, to string)) string {
	best, out := -1, p
	for _, m := range ms {
		from, to := way(m)
		rest, ok := strings.CutPrefix(p, from)
		if ok && len(from) > best && (rest == "" || rest[0] == '/') {
			best, out = len(from), to+rest
		}
	}
	return out
}

// The directories below Dirs.Temp that containers see under names of their own.
const (
	dirHome     = "_github_home"
	dirWorkflow = "_github_workflow"
	dirCommands = "_runner_file_commands"
)

// jobMounts are what the container of a job sees, under the names that it has on GitHub.
func (r *run) jobMounts() mounts {
	d := r.config.Dirs
	ms := mounts{
		{path.Dir(path.Dir(d.Workspace)), "/__w", false},
		{d.Temp, "/__w/_temp", false},
		{d.Actions, "/__w/_actions", false},
		{d.Tools, "/__t", false},
		{path.Join(d.Temp, dirHome), "/github/home", false},
		{path.Join(d.Temp, dirWorkflow), "/github/workflow", false},
	}
	if d.Commands != path.Join(d.Temp, dirCommands) {
		ms = append(ms, mount{d.Commands, "/__w/_temp/" + dirCommands, false})
	}
	var seen []string
	for _, node := range slices.Sorted(maps.Values(r.config.Nodes)) {
		dir, ok := strings.CutSuffix(node, "/bin/node")
		if ok && path.Dir(dir) != "/" && !slices.Contains(seen, dir) { // /usr is more than a runtime
			seen = append(seen, dir)
			ms = append(ms, mount{dir, "/__e/" + path.Base(dir), true})
		}
	}
	return ms
}

// actionMounts are what the container of a docker action sees.
func (r *run) actionMounts() mounts {
	d := r.config.Dirs
	return mounts{
		{d.Temp, "/github/runner_temp", false},
		{path.Join(d.Temp, dirHome), "/github/home", false},
		{path.Join(d.Temp, dirWorkflow), "/github/workflow", false},
		{d.Commands, "/github/file_commands", false},
		{d.Workspace, "/github/workspace", false},
	}
}

// at is where the step's process runs.
func (u *unit) at() site {
	if u.site == nil {
		return u.run.site
	}
	return u.site
}

// onMachine makes patterns that name files as the job's steps see them name files of the machine.
func (r *run) onMachine(patterns []string) []string {
	if _, ok := r.site.(onMachine); ok {
		return patterns
	}
	var list []string
	for _, p := range patterns {
		for line := range strings.Lines(p) {
			line = strings.TrimSpace(line)
			rest := strings.TrimLeft(line, "! ")
			list = append(list, line[:len(line)-len(rest)]+r.site.outside(rest))
		}
	}
	return list
}
