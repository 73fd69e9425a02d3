package runner

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
)

// The command files of one process, below its own directory.
const (
	fileEnv     = "set_env"
	filePath    = "add_path"
	fileOutput  = "set_output"
	fileState   = "save_state"
	fileSummary = "step_summary"
	fileArts    = "artifacts"
	fileList    = "artifacts_list" // which is for the process to read
	fileScript  = "script"
)

// process is one process of a step.
type process struct {
	args   [][]string // command lines; each but the first is for where the program of the one before is not installed
	dir    string
	env    []pair  // beyond the environment of every process
	action bool    // it is an action's: it may see the services' tokens
	node   bool    // it is the bundled node
	site   site    // where it runs; nil: where the job's steps do
	script *string // the script to run; nil: there is none
	ext    string  // of the script's file
}

// dirFor names the directory of the next process's command files.
func (r *run) dirFor() string {
	r.made.dirs++
	return r.config.Dirs.Commands + "/" + strconv.Itoa(r.made.dirs)
}

// process runs one process of u: files in, process, files out. Where the process or what it left behind is at fault
// the error is a *fault; errCancelled and errStepTimeout say that it was ended early.
func (r *run) process(u *unit, p process) error {
	if u.dir == "" {
		u.dir = r.dirFor()
	}
	if p.site == nil {
		p.site = r.site
	}
	env, err := r.processEnv(u, p.site, p.action, p.env)
	if err != nil {
		return err
	}
	ctx, done := r.clock.cancellable(u.limit, u.survives)
	defer done()
	if ctx.Err() != nil {
		return interrupted(ctx)
	}
	if err := r.config.Machine.Put(ctx, u.dir, r.newFiles(p)); err != nil {
		return r.classify(ctx, "writing the step's files", err)
	}
	out := newOutput(u)
	u.site = p.site
	exit, err := p.site.exec(ctx, u, p, env, out)
	r.unlocked(func() { _ = out.Close() })
	u.rec.exited(exit)
	if err == nil || ctx.Err() != nil { // files count even if the step was ended early
		if ferr := r.commandFiles(u); ferr != nil && (err == nil || isOurs(ferr)) {
			return ferr
		}
	}
	switch {
	case ctx.Err() != nil && (err != nil || !exit.Success()):
		if errors.Is(err, guest.ErrLost) || errors.Is(err, guest.ErrProtocol) {
			return machineError("ending a process", err)
		}
		return interrupted(ctx)
	case err != nil:
		return r.classify(ctx, "running a process", err)
	}
	return u.exitError(exit)
}

// exited notes an exit status and what the process took. Of a step with several processes, the first status that is not 0
// stays.
func (rec *record) exited(e guest.Exit) {
	rec.CPU += e.CPU
	rec.MemoryMiB = max(rec.MemoryMiB, e.Memory>>20)
	rec.OutOfMemory = rec.OutOfMemory || e.Shortage == guest.OutOfMemory
	if code := e.Code; e.Started && (rec.ExitCode == nil || *rec.ExitCode == 0) {
		rec.ExitCode = &code
	}
}

// exitError says how a process failed. An exit without a status is a failure.
func (u *unit) exitError(exit guest.Exit) error {
	switch {
	case !exit.Started:
		message := exit.Message
		if message == "" {
			message = "the process could not be started"
		}
		return userError("%s", excerpt(message))
	case exit.Code != 0 && exit.Shortage != "":
		return userError("Process completed with exit code %d: %s.", exit.Code, exit.Shortage)
	case exit.Signal != "":
		return userError("Process completed with exit code %d (%s).", exit.Code, excerpt(exit.Signal))
	case exit.Code != 0:
		return userError("Process completed with exit code %d.", exit.Code)
	}
	return nil
}

// interrupted says why a step's context has ended.
func interrupted(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errStepTimeout) {
		return errStepTimeout
	}
	return errCancelled
}

// classify tells what the machine could not do for the job's sake from a machine that failed.
func (r *run) classify(ctx context.Context, doing string, err error) error {
	var remote *guest.RemoteError
	switch {
	case errors.As(err, &remote), errors.Is(err, fs.ErrNotExist):
		return userError("%s: %s", doing, excerpt(err.Error()))
	case ctx.Err() != nil && !errors.Is(err, guest.ErrLost) && !errors.Is(err, guest.ErrProtocol):
		return interrupted(ctx)
	}
	return machineError(doing, err)
}

// newFiles makes the tar of a process's files: empty command files, what it may read, and the script.
func (r *run) newFiles(p process) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{fileEnv, filePath, fileOutput, fileState, fileSummary, fileArts} {
		writeFile(w, name, 0o666, nil)
	}
	writeFile(w, fileList, 0o444, r.artifactsList())
	if p.script != nil {
		writeFile(w, fileScript+p.ext, 0o755, []byte(*p.script))
	}
	w.Close() // a Buffer does not fail
	return &b
}

// writeFile adds a file to a tar that is made in memory.
func writeFile(w *tar.Writer, name string, mode int64, data []byte) {
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data)), ModTime: time.Unix(0, 0)})
	w.Write(data)
}

// commandFiles fetches what the process wrote and carries it out.
func (r *run) commandFiles(u *unit) error {
	dir := u.dir
	u.dir = ""
	files, err := r.fetchFiles(dir, r.config.Limits.FileBytes, u.tooLarge, fileEnv, filePath, fileOutput, fileState, fileSummary, fileArts)
	if err != nil {
		if blameOf(err) == tgr.BlameUser {
			err = userError("Unable to process file commands: %v", err)
		}
		return err
	}
	for _, f := range []struct {
		name, shown string
		apply       func(string) error
	}{
		{fileEnv, "env", u.pairs(u.setEnv)},
		{fileOutput, "output", u.pairs(u.setOutput)},
		{fileState, "state", u.pairs(u.saveState)},
		{filePath, "path", func(s string) error {
			for _, dir := range parseLines(s) {
				if err := u.addPath(dir); err != nil {
					return err
				}
			}
			return nil
		}},
		{fileSummary, "summary", u.summary},
		{fileArts, "artifacts", u.artifacts},
	} {
		var bad *fault
		if err := f.apply(files[f.name]); errors.As(err, &bad) { // the step fails, and what its other files say counts
			u.fail(fmt.Sprintf("Unable to process file command '%s' successfully: %v", f.shown, bad))
		} else if err != nil {
			return err
		}
	}
	return nil
}

// pairs makes a function that reads a command file and sets each of its entries, up to one that is broken.
func (u *unit) pairs(set func(name, value string) error) func(string) error {
	return func(src string) error {
		pairs, broken := parsePairs(src)
		for _, p := range pairs {
			if err := set(p.Name, p.Value); err != nil {
				return err
			}
		}
		return broken
	}
}

// summary keeps what the step wrote for people to read.
func (u *unit) summary(src string) error {
	r := u.run
	if strings.TrimSpace(src) == "" {
		return nil
	}
	text := r.show(src, int(r.config.Limits.FileBytes))
	for i := range r.result.Summaries {
		if have := &r.result.Summaries[i]; have.Step == u.rec.Number { // steps within one action
			text = have.Markdown + "\n" + text
			have.Markdown = strings.ToValidUTF8(text[:min(len(text), int(r.config.Limits.FileBytes))], "")
			return nil
		}
	}
	r.result.Summaries = append(r.result.Summaries, Summary{Step: u.rec.Number, Markdown: text})
	return nil
}

// tooLarge refuses a command file for its size. A summary is only for people: it is left out, and the step goes on.
func (u *unit) tooLarge(name string, size int64) error {
	limit := u.run.config.Limits.FileBytes
	if name != fileSummary {
		return largeFile(name, size, limit)
	}
	u.run.error(u.rec, fmt.Sprintf("$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of %dk, got %dk.", limit>>10, size>>10))
	return nil
}

func largeFile(name string, size, limit int64) error {
	return userError("'%s' has %d bytes; at most %d are allowed", name, size, limit)
}

// fetchFiles reads regular files of one directory. Files that are not there are missing in the result; anything but a
// regular file is an error of the step. Of a file with more than limit bytes tooLarge says what to do.
func (r *run) fetchFiles(dir string, limit int64, tooLarge func(name string, size int64) error, names ...string) (map[string]string, error) {
	ctx := r.clock.hard
	src, err := r.config.Machine.Get(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, r.classify(ctx, "reading the step's files", err)
	}
	defer closeQuietly(src)
	// Whatever else is in the directory is the job's own, and read over as long as it is not much.
	total := limit*int64(len(names)) + 64<<20
	watch := &watched{r: io.LimitReader(src, total)}
	files := map[string]string{}
	t := tar.NewReader(watch)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return files, leftOut(src, names)
		}
		if err != nil {
			return nil, r.readError(ctx, watch, total, err)
		}
		name := path.Clean(h.Name)
		if !slices.Contains(names, name) {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return nil, userError("'%s' is not a regular file", name)
		}
		if h.Size > limit {
			if err := tooLarge(name, h.Size); err != nil {
				return nil, err
			}
			continue
		}
		data, err := io.ReadAll(t)
		if err != nil {
			return nil, r.readError(ctx, watch, total, err)
		}
		files[name] = string(data)
	}
}

// fetchFile reads one regular file; ok is false if it is not there.
func (r *run) fetchFile(file string, limit int64) (src string, ok bool, err error) {
	name := path.Base(file)
	files, err := r.fetchFiles(file, limit, func(name string, size int64) error { return largeFile(name, size, limit) }, name)
	src, ok = files[name]
	return src, ok, err
}

// leftOut is an error if the machine has left out one of the files, because it is a pipe or a device.
func leftOut(src io.Reader, names []string) error {
	_, _ = io.Copy(io.Discard, io.LimitReader(src, 1<<20)) // what it left out is known at the end
	if t, ok := src.(interface{ Skipped() []string }); ok {
		for _, s := range t.Skipped() {
			name, _, _ := strings.Cut(s, ": ") // why comes after the colon
			if name = path.Clean(name); slices.Contains(names, name) {
				return userError("'%s' is not a regular file", name)
			}
		}
	}
	return nil
}

// readError says whose fault it is that a tar from the machine could not be read.
func (r *run) readError(ctx context.Context, w *watched, total int64, err error) error {
	switch {
	case errors.Is(w.err, fs.ErrNotExist):
		return userError("%v", w.err)
	case w.err != nil && !errors.Is(w.err, io.EOF):
		return r.classify(ctx, "reading files", w.err)
	case w.n >= total:
		return userError("there are more than %d bytes of files", total)
	}
	return userError("the files cannot be read: %s", excerpt(err.Error()))
}

// watched remembers how a reader ended, which a tar reader hides.
type watched struct {
	r   io.Reader
	n   int64
	err error
}

// Read reads on.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.n += int64(n)
	if err != nil {
		w.err = err
	}
	return n, err
}

// prepareMachine makes the job's directories and writes the event's payload.
func (r *run) prepareMachine() error {
	ctx := r.clock.hard // also for a job that is cancelled: some of its steps may want to run
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	event := r.job.Event
	if len(event) == 0 {
		event = []byte("{}")
	}
	writeFile(w, path.Base(eventPath(r.config.Dirs)), 0o644, event)
	w.Close()
	for _, put := range []struct {
		dir string
		tar io.Reader
	}{{path.Dir(eventPath(r.config.Dirs)), &b}, {r.config.Dirs.Workspace, emptyTar()}} {
		if err := r.config.Machine.Put(ctx, put.dir, put.tar); err != nil {
			if ctx.Err() != nil {
				return interrupted(ctx)
			}
			return machineError("preparing the workspace", err)
		}
	}
	return nil
}

func emptyTar() io.Reader {
	var b bytes.Buffer
	tar.NewWriter(&b).Close()
	return &b
}

// eventPath is where the event's payload is.
func eventPath(d Dirs) string { return path.Join(d.Temp, "_github_workflow", "event.json") }

// script runs a `run` step.
func (r *run) script(u *unit) error {
	script, err := r.text(u.src.Run, u.sc, u, u.src.Pos, "run")
	if err != nil {
		return err
	}
	name, dir, err := r.defaults(u)
	if err != nil {
		return err
	}
	if _, ok := r.site.(onMachine); name == "" && !ok {
		name = "sh" // as GitHub does in containers
	}
	sh, err := shellOf(name, r.file(u.sc), u.src.Pos)
	if err != nil {
		return err
	}
	if u.src.Name == "" {
		u.rename("Run " + firstLine(script))
	}
	r.header(u, firstLine(script), func(line func(string)) {
		for l := range strings.Lines(strings.TrimRight(script, "\r\n")) {
			line(strings.TrimRight(l, "\r\n"))
		}
		line("shell: " + sh.shown)
	})
	r.used = true
	file := r.site.inside(u.dir) + "/" + fileScript + sh.ext
	script = sh.wrap(script)
	p := process{dir: dir, script: &script, ext: sh.ext, args: [][]string{args(sh.format, file)}}
	if sh.alt != "" {
		p.args = append(p.args, args(sh.alt, file))
	}
	return r.process(u, p)
}

// defaults finds the shell and the working directory of a script: the step's own, then those of the job, then those
// of the workflow. The steps of actions have no defaults.
func (r *run) defaults(u *unit) (shell, dir string, err error) {
	shell, dir = u.src.Shell, u.src.WorkingDirectory
	if u.top() {
		for _, d := range []struct{ shell, dir string }{
			{r.job.Job.Defaults.Shell, r.job.Job.Defaults.WorkingDirectory},
			{r.job.Plan.Defaults.Shell, r.job.Plan.Defaults.WorkingDirectory},
		} {
			if shell == "" {
				shell = d.shell
			}
			if dir == "" {
				dir = d.dir
			}
		}
	}
	if shell, err = r.text(shell, u.sc, u, u.src.Pos, "shell"); err != nil {
		return "", "", err
	}
	if dir, err = r.text(dir, u.sc, u, u.src.Pos, "working-directory"); err != nil {
		return "", "", err
	}
	return shell, r.workdir(dir), nil
}

// header logs what a step is about to do, as a group: its title, the details, and the environment that the workflow sets.
func (r *run) header(u *unit, title string, details func(line func(string))) {
	r.log(u.rec, "##[group]Run "+title)
	details(func(s string) { r.log(u.rec, s) })
	env := r.envContext(u.sc, u)
	if env.Len() > 0 {
		r.log(u.rec, "env:")
		for _, name := range env.Keys() {
			value, _, _ := env.Get(name) // not lazy
			r.log(u.rec, fmt.Sprintf("  %s: %s", name, value.Text()))
		}
	}
	r.log(u.rec, "##[endgroup]")
}
