package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/workflow"
)

// engine is the machine's container engine, by the part of its command line that podman and docker have in common.
type engine struct {
	run   *run
	name  string // podman or docker
	libc  string // directory of the machine's C library, which its node runtimes need; "": none was found
	sock  bool   // the machine has dockerSocket
	made  int    // names given so far
	built map[string]string
	net   string   // of the job's services; "": it has none
	hosts []string // flags that name the services
}

// Bounds of what an engine says.
const (
	maxEngineSays = 8 << 20
	pullTries     = 3
	tidyTime      = time.Minute // for what has to be removed after a job that has no time left
)

// dockerSocket is where programs look for the API of a container engine, and where docker actions and the container of a job have it.
const dockerSocket = "/var/run/docker.sock"

// findLibc is where Debian has the C library.
const findLibc = "/usr/lib/x86_64-linux-gnu"

// needEngine finds the engine, once per job. what is what asks for it, for the error.
func (r *run) needEngine(pos workflow.Pos, file, what string) (*engine, error) {
	if r.engine != nil {
		return r.engine, nil
	}
	none := func() (*engine, error) {
		return nil, workflowError(file, pos, "%s, and this machine has no container engine. One is in the full image: "+
			"`tgr image build full --full` makes it, and jobs get it by --image full or a label that names it", what)
	}
	known := slices.DeleteFunc(slices.Clone(r.config.Engines), func(name string) bool { return name != "podman" && name != "docker" })
	if len(known) == 0 {
		return none()
	}
	e := &engine{run: r, built: map[string]string{}}
	script := "for e in " + strings.Join(known, " ") + "; do command -v $e >/dev/null && echo $e && break; done; " +
		"test -e " + findLibc + "/ld-linux-x86-64.so.2 && echo libc; test -S " + dockerSocket + " && echo sock; true"
	out := &bounded{left: 4 << 10}
	exit, err := r.config.Machine.Exec(r.clock.hard, guest.Cmd{Args: []string{"/bin/sh", "-c", script}, Env: e.env(nil)}, out)
	if err != nil {
		return nil, r.classify(r.clock.hard, "looking for a container engine", err)
	}
	for _, word := range strings.Fields(out.b.String()) {
		switch {
		case word == "libc":
			e.libc = findLibc
		case word == "sock":
			e.sock = true
		case e.name == "":
			e.name = word
		}
	}
	if e.name == "" || !exit.Success() {
		return none()
	}
	for _, dir := range []string{path.Join(r.config.Dirs.Temp, dirHome), r.config.Dirs.Commands, r.config.Dirs.Actions, r.config.Dirs.Tools} {
		if err := r.config.Machine.Put(r.clock.hard, dir, emptyTar()); err != nil {
			return nil, r.classify(r.clock.hard, "making the directories that containers see", err)
		}
	}
	r.engine = e
	return e, nil
}

// env is the environment of the engine's own program. Its health checks are ours to run: podman leaves them to systemd,
// which the machine does not have.
func (e *engine) env(more []string) []string {
	p := e.run.config.Env["PATH"]
	if p == "" {
		p = defaultPath
	}
	return append([]string{"PATH=" + p, "HOME=/root", "LANG=C.UTF-8", "DISABLE_HC_SYSTEMD=true"}, more...)
}

// cmd is a command of the engine, which runs as the agent does: as root.
func (e *engine) cmd(env []string, args ...string) guest.Cmd {
	return guest.Cmd{Args: append([]string{e.name}, args...), Dir: "/", Env: e.env(env), Grace: e.run.config.Limits.Grace}
}

// withSocket adds the engine's own API to a container's flags, if there is one.
func (e *engine) withSocket(flags []string) []string {
	if !e.sock {
		return flags
	}
	return append(flags, "-v", dockerSocket+":"+dockerSocket)
}

// show runs a command and logs it and what it says. A command that fails is an error of the workflow's.
func (e *engine) show(ctx context.Context, rec *record, c guest.Cmd) error {
	e.run.log(rec, "##[command]"+strings.Join(c.Args, " "))
	out := &logWriter{run: e.run, rec: rec}
	exit, err := e.run.config.Machine.Exec(ctx, c, out)
	out.flush()
	return e.failed(ctx, c, exit, err, out.last)
}

// ask runs a command and returns what it says on standard output.
func (e *engine) ask(ctx context.Context, c guest.Cmd) ([]byte, error) {
	out, complaint := &bounded{left: maxEngineSays}, &bounded{left: 4 << 10}
	c.Stderr = complaint
	exit, err := e.run.config.Machine.Exec(ctx, c, out)
	if err == nil && out.over {
		return nil, userError("%s %s said more than %d bytes", e.name, c.Args[1], maxEngineSays)
	}
	return out.b.Bytes(), e.failed(ctx, c, exit, err, lastLine(complaint.b.String()))
}

func (e *engine) failed(ctx context.Context, c guest.Cmd, exit guest.Exit, err error, said string) error {
	switch {
	case err != nil:
		return e.run.classify(ctx, "running "+e.name, err)
	case exit.Success():
		return nil
	case said == "":
		said = exit.Message
	}
	return userError("%s %s failed with exit code %d: %s", e.name, c.Args[1], exit.Code, excerpt(said))
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// logWriter logs lines as they are: what an engine prints holds no commands for the runner.
type logWriter struct {
	run  *run
	rec  *record
	buf  []byte
	last string // the last line that is not blank
}

// Write never fails. It is for the machine: flush is for who has the run's lock.
func (w *logWriter) Write(p []byte) (int, error) {
	w.run.mu.Lock()
	defer w.run.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, more, ended := bytes.Cut(rest, []byte("\n"))
		w.buf = append(w.buf, line...)
		if rest = more; ended || len(w.buf) > w.run.config.Limits.LineBytes {
			w.flush()
		}
	}
	return len(p), nil
}

func (w *logWriter) flush() {
	if len(w.buf) == 0 {
		return
	}
	line := strings.TrimRight(string(w.buf), "\r")
	w.buf = w.buf[:0]
	if strings.TrimSpace(line) != "" {
		w.last = line
	}
	w.run.log(w.rec, line)
}

// name makes a name for a container or image of this job.
func (e *engine) unique(kind string) string {
	e.made++
	return "tgr_" + kind + "_" + strconv.Itoa(e.made)
}

// pull gets an image that the machine does not have. A login, if one is needed, is forgotten afterwards.
func (e *engine) pull(ctx context.Context, rec *record, image, user, password string) error {
	if _, err := e.ask(ctx, e.cmd(nil, "image", "inspect", "--format", "{{.Id}}", image)); err == nil || ctx.Err() != nil || isOurs(err) {
		return err
	}
	var env []string
	if user != "" && password != "" {
		auth := path.Join(e.run.config.Dirs.Temp, e.unique("login"))
		if err := e.run.config.Machine.Put(ctx, auth, emptyTar()); err != nil {
			return e.run.classify(ctx, "making a directory for a login", err)
		}
		defer e.tidy(guest.Cmd{Args: []string{"rm", "-rf", auth}, Env: e.env(nil)})
		env = []string{"DOCKER_CONFIG=" + auth, "REGISTRY_AUTH_FILE=" + auth + "/config.json"}
		login := e.cmd(env, "login", "--username", user, "--password-stdin", registryOf(image))
		login.Stdin = strings.NewReader(password)
		if err := e.show(ctx, rec, login); err != nil {
			return err
		}
	}
	for try := 1; ; try++ {
		err := e.show(ctx, rec, e.cmd(env, "pull", image))
		if err == nil || try == pullTries || e.name == "podman" || // which tries four times by itself
			isOurs(err) || ctx.Err() != nil {
			return err
		}
		wait := time.Duration(try*try) * time.Second
		e.run.log(rec, fmt.Sprintf("##[warning]%v; trying again in %v", err, wait))
		if err := e.run.pause(ctx, wait); err != nil {
			return err
		}
	}
}

// pause waits, and lets other steps go on meanwhile.
func (r *run) pause(ctx context.Context, d time.Duration) (err error) {
	r.unlocked(func() {
		select {
		case <-ctx.Done():
			err = interrupted(ctx)
		case <-time.After(d):
		}
	})
	return err
}

// registryOf is the registry that an image's name begins with, by docker's rule: a first part with a dot or a colon, or
// localhost, is a host.
func registryOf(image string) string {
	host, _, ok := strings.Cut(image, "/")
	if ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		return host
	}
	return "docker.io"
}

// inspected is what is needed of an engine's inspect, which podman has from docker.
type inspected struct {
	ID            string `json:"Id"`
	OCIRuntime    string // of podman
	OCIConfigPath string // of podman: the container's description for its runtime
	State         struct {
		Running  bool
		ExitCode int
		Pid      int
		Health   struct{ Status string }
	}
	Config struct {
		Env         []string
		Healthcheck *healthcheck
	}
	NetworkSettings struct {
		Ports    map[string][]struct{ HostPort string } // "80/tcp"
		Networks map[string]struct{ IPAddress string }
	}
}

// healthcheck is how a container says that it is ready; times are in nanoseconds.
type healthcheck struct {
	Test        []string
	Interval    time.Duration
	Timeout     time.Duration
	StartPeriod time.Duration
	Retries     int
}

// checks reports whether there is anything to run.
func (h *healthcheck) checks() bool {
	return h != nil && len(h.Test) > 0 && h.Test[0] != "NONE"
}

// inspect describes one container.
func (e *engine) inspect(ctx context.Context, id string) (inspected, error) {
	data, err := e.ask(ctx, e.cmd(nil, "container", "inspect", id))
	if err != nil {
		return inspected{}, err
	}
	return parseInspected(data)
}

func parseInspected(data []byte) (inspected, error) {
	var list []inspected
	if err := json.Unmarshal(data, &list); err != nil || len(list) != 1 {
		return inspected{}, userError("the engine's description of a container cannot be read: %v, %d containers", err, len(list))
	}
	return list[0], nil
}

// remove ends containers, whatever they do. The job may have no time left for it.
func (e *engine) remove(ids ...string) {
	args := []string{"rm", "--force", "--volumes"}
	if e.name == "podman" {
		args = append(args, "--time=0") // docker never waits
	}
	e.tidy(e.cmd(nil, append(args, ids...)...))
}

// tidy runs a command that has to be run whatever has happened to the job. What it says is of no use to anybody.
func (e *engine) tidy(c guest.Cmd) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.run.clock.hard), tidyTime)
	defer cancel()
	if exit, err := e.run.config.Machine.Exec(ctx, c, io.Discard); err != nil || !exit.Success() {
		e.run.config.Log.Debug("tidy up", "command", c.Args[0], "exit", exit.Code, "error", err)
	}
}

// envFlags make -e flags of an environment, and the environment that the engine's own program has to have for them.
// Values do not stand on the command line, where others could read them, unless the engine would obey the variable itself.
func envFlags(env []string) (flags, own []string) {
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if obeyed(name) {
			flags = append(flags, "-e", kv)
			continue
		}
		flags, own = append(flags, "-e", name), append(own, kv)
	}
	return flags, own
}

// obeyed reports whether a program of Go, podman or docker changes its ways for a variable.
func obeyed(name string) bool {
	for _, prefix := range []string{"LD_", "GO", "DOCKER_", "CONTAINER", "PODMAN_", "BUILDAH_", "STORAGE_", "REGISTRY_", "REGISTRIES_", "NETAVARK_", "XDG_", "SSL_", "DISABLE_HC_", "_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	switch name {
	case "PATH", "HOME", "USER", "TMPDIR", "LANG", "LC_ALL", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "INVOCATION_ID", "BASH_ENV", "ENV":
		return true
	}
	return strings.HasSuffix(strings.ToUpper(name), "_PROXY")
}
