package runner

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/guest"
)

// box is the job's own container, while it runs.
type box struct {
	mounts
	engine *engine
	id     string
	path   string   // PATH in its image
	loader []string // what runs the bundled node where the container has no C library that it could use; nil: nothing has to
	execs  int
	proc   ociProcess // how its runtime starts processes in it; nil: only the engine does
}

// gitConfig is that of containers, in which the workspace belongs to somebody else.
const gitConfig = "[safe]\n\tdirectory = *\n"

// startContainer starts one container of the job.
func (r *run) startContainer(ctx context.Context, rec *record, c *container) error {
	if c.name == "" {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		writeFile(w, ".gitconfig", 0o644, []byte(gitConfig))
		w.Close()
		if err := r.config.Machine.Put(ctx, path.Join(r.config.Dirs.Temp, dirHome), &b); err != nil {
			return r.classify(ctx, "writing the container's git configuration", err)
		}
	}
	e := r.engine
	if err := e.pull(ctx, rec, c.image, c.user, c.password); err != nil {
		return fmt.Errorf("%s: %w", c.what(), err)
	}
	args, own := e.runArgs(c)
	id, err := e.ask(ctx, e.cmd(own, args...))
	shown := args
	for i := range shown {
		if i > 0 && shown[i-1] == "-e" {
			shown[i], _, _ = strings.Cut(shown[i], "=")
		}
	}
	r.log(rec, "##[command]"+e.name+" "+strings.Join(shown, " "))
	if err != nil {
		return fmt.Errorf("%s: %w", c.what(), err)
	}
	c.id = strings.TrimSpace(lastLine(string(id)))
	if c.id == "" || strings.HasPrefix(c.id, "-") || len(c.id) > 128 {
		return userError("%s run gave no id of a container", e.name)
	}
	c.now, err = e.inspect(ctx, c.id)
	return err
}

// enterContainer makes the job's container the place where steps run from now on.
func (r *run) enterContainer(ctx context.Context, c *container) error {
	if !c.now.State.Running {
		r.engine.showLogs(ctx, r.boxes.rec, c)
		return userError("%s: it ended at once, with exit code %d: its image has to have a program named tail", c.what(), c.now.State.ExitCode)
	}
	b := &box{mounts: r.boxMounts(), engine: r.engine, id: c.id, path: defaultPath}
	for _, kv := range c.now.Config.Env {
		if p, ok := strings.CutPrefix(kv, "PATH="); ok {
			b.path = p
		}
	}
	if r.engine.libc != "" && c.now.State.Pid > 0 {
		root := "/proc/" + strconv.Itoa(c.now.State.Pid) + "/root/"
		exit, err := r.config.Machine.Exec(ctx, guest.Cmd{Args: []string{"test", "-e", root + "lib64/ld-linux-x86-64.so.2"}, Env: r.engine.env(nil)}, io.Discard)
		if err != nil {
			return r.classify(ctx, "looking into the container", err)
		}
		if exit.Code == 1 {
			b.loader = []string{libcInside + "/ld-linux-x86-64.so.2", "--library-path", libcInside}
		}
	}
	if c.now.OCIRuntime == crun {
		src, ok, err := r.fetchFile(path.Clean("/"+c.now.OCIConfigPath), maxEngineSays)
		if isOurs(err) {
			return err
		}
		if ok && err == nil { // otherwise the engine will do
			b.proc = parseOCIProcess([]byte(src))
		}
	}
	r.site = b
	for _, key := range []string{"workspace", "event_path"} {
		r.static.github[key] = b.inside(expr.FromAny(r.static.github[key]).Text())
	}
	r.static.fillRunner(r)
	return nil
}

func (b *box) base() map[string]string {
	return map[string]string{"PATH": b.path, "HOME": "/github/home", "CI": "true"}
}

// marker is the variable by which the processes of one exec are found.
const marker = "_TGR_EXEC"

// exec runs a process in the container. When ctx ends, the processes inside are ended as those on the machine are: the
// engine's own program would end alone, and leave them.
func (b *box) exec(ctx context.Context, u *unit, p process, env []string, out io.Writer) (guest.Exit, error) {
	r := b.engine.run
	b.execs++
	mark := marker + "=" + strconv.Itoa(b.execs)
	line := p.args[0]
	if p.node && b.loader != nil {
		line = append(append([]string{}, b.loader...), line...)
	}
	cmd, err := b.command(line, p.dir, append(env, mark))
	if err != nil {
		return guest.Exit{}, err
	}
	inner, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	over := make(chan struct{})
	undo := context.AfterFunc(ctx, func() {
		defer close(over)
		b.kill(inner, mark, r.config.Limits.Grace)
		end()
	})
	exit, err := r.config.Machine.Exec(inner, cmd, out)
	if !undo() { // ctx has ended: nothing of the step may live on
		r.unlocked(func() { <-over })
	}
	exit.CPU = 0 // of the engine's program: what runs in the container is no child of it
	return exit, err
}

// kill ends the processes with a mark, gently at first. It returns when none is left, or it cannot be helped.
func (b *box) kill(ctx context.Context, mark string, grace time.Duration) {
	for _, s := range []struct {
		signal string
		wait   time.Duration
	}{{"INT", grace * 3 / 4}, {"TERM", grace / 4}, {"KILL", tidyTime}} {
		signal := s.signal
		for deadline := time.Now().Add(s.wait); ; time.Sleep(50 * time.Millisecond) {
			if !b.signal(ctx, mark, signal) {
				return
			}
			if time.Now().After(deadline) {
				break
			}
			if s.signal != "KILL" { // one that catches signals is told once
				signal = "0"
			}
		}
	}
}

// signal sends a signal to the processes with a mark, and reports whether there are any. They are found in the machine,
// where a container's processes are seen, too: the container itself may have no programs.
func (b *box) signal(ctx context.Context, mark, signal string) bool {
	script := "n=1; for e in $(grep -lzxs '" + mark + "' /proc/[0-9]*/environ); do p=${e%/environ}; kill -" + signal + " ${p#/proc/} && n=0; done 2>/dev/null; exit $n"
	exit, err := b.engine.run.unshared().Exec(ctx, guest.Cmd{Args: []string{"/bin/sh", "-c", script}, Env: b.engine.env(nil)}, io.Discard)
	return err == nil && exit.Success()
}

// workdir is where a process of the site runs whose directory is a path of the machine, or already one of the site.
func (r *run) workdir(dir string) string {
	if path.IsAbs(dir) {
		return dir
	}
	return r.site.inside(path.Join(r.config.Dirs.Workspace, dir))
}
