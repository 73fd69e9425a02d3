package vmapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr/guest"
)

// Bounds of what is done over /api/llm/execute alone.
const (
	plainPiece   = 64 << 10               // bytes that one call carries; in base64 they must be one argument of a command line, below 128 KiB
	plainAgain   = 250 * time.Millisecond // after a call that failed with 255
	plainMostTry = 8                      // calls of which ssh failed, in a row, once the machine was there
	plainTimeout = 60 * time.Second       // that is asked for each call; none takes long
	plainPolls   = 20                     // looks, a tenth of a second apart, before a call about a running command answers
	plainMark    = "tgr-said-all"         // ends the output of every script that ran to its end
)

// errSSH is the original's exit status 255: its ssh into the machine failed, and the script did not run to its end.
var errSSH = errors.New("the VM API's ssh into the machine failed, status 255")

// plain speaks to one machine of a server that knows fcctl-web's calls alone. Such a server runs a script and answers
// when it has ended; it has no streams, no files and no cancellation, gives scripts a time of its own, ignores the
// working directory, and reports a failure of its ssh as the script's exit status 255. So a command is started in the
// background, once, and watched by short scripts that may be sent again; its status comes from a file, never from the
// answer. Files move as tar in base64, a piece at a time.
//
// Not possible this way: terminals, other users, the name of a signal (the status is 128 and its number), and
// arguments or variables with a NUL.
type plain struct {
	c    *Client
	id   string
	base string // folder in the machine for all that is ours
}

func newPlain(c *Client, id string) *plain {
	return &plain{c: c, id: id, base: "/tmp/tgr-" + strings.ToLower(rand.Text()[:12])}
}

// once runs a script and returns its standard output, without the mark.
func (p *plain) once(ctx context.Context, script string) (string, error) {
	r, err := p.c.Execute(ctx, ExecuteRequest{AgentID: "tgr", Language: "bash", Code: script + "\necho " + plainMark + "\n", VMID: p.id,
		TimeoutSeconds: plainTimeout.Seconds(), TimeoutMS: float64(plainTimeout.Milliseconds()), WorkingDir: "/tmp"})
	if err != nil {
		return "", err
	}
	out, whole := strings.CutSuffix(strings.TrimRight(r.Stdout, "\r\n"), plainMark)
	switch {
	case *r.ExitCode == 255:
		return "", fmt.Errorf("%w: %s", errSSH, clip(r.Stderr, 500))
	case *r.ExitCode != 0 || !whole:
		return "", fmt.Errorf("a script of ours ended with status %d in the machine %s: %s", *r.ExitCode, p.id, clip(r.Stderr, 500))
	}
	return out, nil
}

// script runs a script that may run more than once, again while ssh fails.
func (p *plain) script(ctx context.Context, script string) (string, error) {
	for try := 1; ; try++ {
		out, err := p.once(ctx, script)
		if err == nil || !errors.Is(err, errSSH) || try == plainMostTry {
			return out, p.lost(ctx, err)
		}
		if err := pause(ctx, plainAgain); err != nil {
			return "", err
		}
	}
}

// lost says of an error of the machinery that the machine is lost, unless it is ctx's.
func (p *plain) lost(ctx context.Context, err error) error {
	var refused *Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &refused) && refused.Code == "unauthorized":
		return err
	}
	return fmt.Errorf("%w: %w", guest.ErrLost, err)
}

// probe waits until scripts run, and says where things are. A machine that is "running" has no ssh for a while yet.
func (p *plain) probe(ctx context.Context) (*Place, string, error) {
	script := "mkdir -p " + p.base + "/home " + p.base + "/tools\n" + `for t in tar base64 setsid env stat head tail find; do
  command -v $t >/dev/null || printf 'missing %s\n' $t
done
printf 'kernel %s\n' "$(uname -r)"
printf 'path %s\n' "$PATH"
printf 'node %s\n' "$(command -v node)"`
	for {
		out, err := p.once(ctx, script)
		if errors.Is(err, errSSH) && ctx.Err() == nil {
			if perr := pause(ctx, plainAgain); perr == nil {
				continue
			}
			return nil, "", fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		if err != nil {
			return nil, "", p.lost(ctx, err)
		}
		return p.place(out)
	}
}

func (p *plain) place(out string) (*Place, string, error) {
	place := &Place{Home: p.base + "/home", Tools: p.base + "/tools", Env: map[string]string{"LANG": "C.UTF-8"}, Nodes: map[string]string{}}
	kernel := ""
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "missing":
			return nil, "", fmt.Errorf("the machine %s has no %s, without which nothing can be run over this VM API", p.id, clip(value, 50))
		case "kernel":
			kernel = clip(value, 128)
		case "path":
			place.Env["PATH"] = value
		case "node":
			if value != "" {
				for _, name := range []string{"node12", "node16", "node20", "node24"} {
					place.Nodes[name] = value
				}
			}
		}
	}
	return place, kernel, nil
}

// upload writes a file in the machine, a piece per call. A piece that is sent again is the same.
func (p *plain) upload(ctx context.Context, name string, r io.Reader) error {
	buf := make([]byte, plainPiece)
	pieces := 0
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			script := fmt.Sprintf("set -e; mkdir -p %s.d; printf %%s %s | base64 -d > %s.d/%08d", name, base64.StdEncoding.EncodeToString(buf[:n]), name, pieces)
			if _, err := p.script(ctx, script); err != nil {
				return err
			}
			pieces++
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading what is sent: %w", err)
		}
	}
	// Where an answer was lost, the pieces are gone and the file is there.
	script := fmt.Sprintf("set -e; if [ -d %s.d ] || [ ! -e %s ]; then mkdir -p %s.d; find %s.d -type f | sort | xargs -r cat > %s; rm -rf %s.d; fi", name, name, name, name, name, name)
	_, err := p.script(ctx, script)
	return err
}

// put unpacks a tar stream below dir.
func (p *plain) put(ctx context.Context, dir string, r io.Reader) error {
	name := p.file("put")
	if err := p.upload(ctx, name, r); err != nil {
		return fmt.Errorf("put into %s: %w", dir, err)
	}
	defer p.remove(ctx, name+" "+name+".err")
	out, err := p.script(ctx, fmt.Sprintf(`mkdir -p -- %s 2>%s.err && tar -xf %s --no-same-owner -p -C %s 2>>%s.err && echo done || { echo failed; head -c 1000 %s.err; }`,
		quote(dir), name, name, quote(dir), name, name))
	if err != nil {
		return fmt.Errorf("put into %s: %w", dir, err)
	}
	if !strings.HasPrefix(out, "done") {
		return fmt.Errorf("put into %s: %w", dir, &Error{Status: 422, Code: "guest", Message: clip(out, 1000)})
	}
	return nil
}

// file is the name of a new file of ours in the machine.
func (p *plain) file(kind string) string {
	return p.base + "/" + kind + "-" + strings.ToLower(rand.Text()[:12])
}

// get returns a tar of a path, made in the machine and fetched a piece at a time.
func (p *plain) get(ctx context.Context, path string) (io.ReadCloser, error) {
	name := p.file("get")
	out, err := p.script(ctx, fmt.Sprintf(`f=%s; t=%s
if [ -d "$f" ]; then cd -- "$f" && find . -mindepth 1 -maxdepth 1 -printf '%%P\0' | tar -cf "$t" --null --verbatim-files-from -T - 2>"$t.err"; s=$?
elif [ -e "$f" ]; then tar -chf "$t" -C "$(dirname -- "$f")" -- "$(basename -- "$f")" 2>"$t.err"; s=$?
else echo not_exist; s=; fi
[ -z "$s" ] || { [ $s = 0 ] && stat -c 'size %%s' "$t" || { echo failed; head -c 1000 "$t.err"; }; }`, quote(path), name))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	digits, ok := strings.CutPrefix(strings.TrimSpace(out), "size ")
	size, perr := strconv.ParseInt(digits, 10, 64)
	switch {
	case strings.TrimSpace(out) == "not_exist":
		return nil, fmt.Errorf("get %s: %w", path, &Error{Status: 404, Code: "not_exist", Message: path + ": no such file or directory"})
	case !ok || perr != nil || size < 0:
		return nil, fmt.Errorf("get %s: %w", path, &Error{Status: 422, Code: "guest", Message: clip(out, 1000)})
	}
	return &plainTree{p: p, ctx: ctx, name: name, size: size}, nil
}

// plainTree reads a file of the machine.
type plainTree struct {
	p        *plain
	ctx      context.Context
	name     string
	at, size int64
	rest     []byte
}

// Read reads what is there, and fetches the next piece where nothing is.
func (t *plainTree) Read(b []byte) (int, error) {
	if len(t.rest) == 0 {
		if t.at == t.size {
			return 0, io.EOF
		}
		out, err := t.p.script(t.ctx, fmt.Sprintf("tail -c +%d %s | head -c %d | base64 -w0", t.at+1, t.name, plainPiece))
		if err != nil {
			return 0, err
		}
		if t.rest, err = base64.StdEncoding.DecodeString(strings.TrimSpace(out)); err != nil || len(t.rest) == 0 || t.at+int64(len(t.rest)) > t.size {
			return 0, fmt.Errorf("%w: a piece of a file that is not what was asked for", guest.ErrProtocol)
		}
		t.at += int64(len(t.rest))
	}
	n := copy(b, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// Close removes the file from the machine.
func (t *plainTree) Close() error {
	t.p.remove(t.ctx, t.name+" "+t.name+".err")
	return nil
}

// remove removes files of ours from the machine, as far as it still answers.
func (p *plain) remove(ctx context.Context, names string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callWithin)
	defer cancel()
	if _, err := p.once(ctx, "rm -rf "+names); err != nil {
		p.c.cfg.Log.Debug("remove files of ours from a machine", "vm", p.id, "error", err)
	}
}

// quote makes one word for the shell of any text without a NUL.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// noNUL refuses what no command line can hold.
func noNUL(c *guest.Cmd) error {
	for _, s := range append(append([]string{c.Dir}, c.Args...), c.Env...) {
		if strings.Contains(s, "\x00") {
			return fmt.Errorf("exec: an argument or variable with a NUL: %w", fs.ErrInvalid)
		}
	}
	return nil
}

// exec runs a command in the background of the machine and follows it.
func (p *plain) exec(ctx context.Context, cmd guest.Cmd, out io.Writer) (guest.Exit, error) {
	switch {
	case cmd.TTY != nil:
		return guest.Exit{}, unsupported("the VM API at %s has no terminals", p.c.base.Host)
	case cmd.User != "":
		return guest.Exit{}, unsupported("the VM API at %s runs commands as its own user, not as %q", p.c.base.Host, cmd.User)
	case len(cmd.Args) == 0 || cmd.Args[0] == "":
		return guest.Exit{Code: 127, Message: "no program was named"}, nil
	}
	if err := noNUL(&cmd); err != nil {
		return guest.Exit{}, err
	}
	w := &watch{p: p, dir: p.file("exec"), cmd: cmd, out: out, errout: cmd.Stderr}
	began := time.Now()
	exit, err := w.run(ctx)
	exit.Duration = time.Since(began)
	return exit, err
}

// watch is one command that runs.
type watch struct {
	p           *plain
	dir         string // of the command's files in the machine
	cmd         guest.Cmd
	out, errout io.Writer
	seen        [2]int64 // bytes of each output that were delivered
}

func (w *watch) run(ctx context.Context) (guest.Exit, error) {
	if w.cmd.Stdin != nil {
		if err := w.p.upload(ctx, w.dir+".in", w.cmd.Stdin); err != nil {
			return guest.Exit{}, fmt.Errorf("exec: standard input: %w", err)
		}
	}
	if err := w.p.upload(ctx, w.dir+".sh", strings.NewReader(w.wrapper())); err != nil {
		return guest.Exit{}, fmt.Errorf("exec: %w", err)
	}
	// The folder is made by whoever starts the command, so that a call that is made again starts nothing.
	// setsid forks, and not the shell, whose background processes are born deaf to SIGINT.
	start := fmt.Sprintf("mkdir %s 2>/dev/null && setsid --fork bash %s.sh </dev/null >/dev/null 2>&1; true", w.dir, w.dir)
	if _, err := w.p.script(ctx, start); err != nil {
		return guest.Exit{}, fmt.Errorf("exec: %w", err)
	}
	defer w.p.remove(ctx, w.dir+" "+w.dir+".*")
	// From here on the command runs, whatever becomes of ctx: it is ended, and its last words are heard.
	life := context.WithoutCancel(ctx)
	steps := []cancelStep{{"INT", w.cmd.Grace - w.cmd.Grace/4}, {"TERM", w.cmd.Grace / 4}, {"KILL", cancelSlack}}
	if w.cmd.Grace <= 0 {
		steps = steps[2:]
	}
	var next time.Time // when the next step is taken
	for {
		if ctx.Err() != nil && !time.Now().Before(next) {
			if len(steps) == 0 {
				return guest.Exit{}, fmt.Errorf("exec: %w: the command did not end", guest.ErrLost)
			}
			if err := w.signal(life, steps[0].signal); err != nil {
				return guest.Exit{}, err
			}
			next = time.Now().Add(steps[0].wait)
			steps = steps[1:]
		}
		exit, over, err := w.poll(life)
		if err != nil {
			return guest.Exit{}, fmt.Errorf("exec: %w", err)
		}
		if over {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return exit, err
		}
	}
}

type cancelStep struct {
	signal string
	wait   time.Duration
}

// wrapper is the script that runs the command and writes down how it ended. What a poll may read is renamed when it is whole: a
// poll that found a file without its number took a command that had just begun for one that was killed.
func (w *watch) wrapper() string {
	var b bytes.Buffer
	c := &w.cmd
	dir, path := c.Dir, ""
	if dir == "" {
		dir = "/"
	}
	for _, e := range c.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	fmt.Fprintf(&b, "d=%s; cd %s 2>/dev/null; there=$?\n", w.dir, quote(dir))
	b.WriteString(`over() { printf '%s %s\n' "$1" "$2" > $d/exit.new; mv $d/exit.new $d/exit; exit 0; }
trap : INT TERM
echo $$ > $d/pid.new; mv $d/pid.new $d/pid; : > $d/out; : > $d/err
`)
	fmt.Fprintf(&b, "[ $there = 0 ] || { printf 'working directory %%s: cannot be entered' %s > $d/message; over 126 n; }\n", quote(dir))
	fmt.Fprintf(&b, "a=%s\n", quote(c.Args[0]))
	fmt.Fprintf(&b, "case $a in */*) f=$a;; *) f=$(PATH=%s; hash -r; type -P -- \"$a\");; esac\n", quote(path))
	b.WriteString(`if [ -z "$f" ] || [ ! -e "$f" ]; then printf '%s: command not found' "$a" > $d/message; over 127 n; fi
if [ -d "$f" ] || [ ! -x "$f" ]; then printf '%s: cannot be executed' "$a" > $d/message; over 126 n; fi
case $f in *=*) printf '%s: a program with = in its path cannot be run over this VM API' "$a" > $d/message; over 126 n;; esac
`)
	b.WriteString("env -i")
	for _, e := range c.Env {
		b.WriteString(" " + quote(e))
	}
	b.WriteString(` "$f"`)
	for _, a := range c.Args[1:] {
		b.WriteString(" " + quote(a))
	}
	in, errout := "/dev/null", "&1"
	if c.Stdin != nil {
		in = w.dir + ".in"
	}
	if c.Stderr != nil {
		errout = "$d/err"
	}
	fmt.Fprintf(&b, " <%s >>$d/out 2>%s\nover $? y\n", in, errout)
	return b.String()
}

// poll asks for news of the command, for which the machine waits a little.
func (w *watch) poll(ctx context.Context) (exit guest.Exit, over bool, err error) {
	out, err := w.p.script(ctx, fmt.Sprintf(`d=%s; o=%d; e=%d; x=
for i in $(seq %d); do
  [ -e $d/exit ] && break
  [ "$(stat -c %%s $d/out 2>/dev/null || echo 0)" -gt $o ] && break
  [ "$(stat -c %%s $d/err 2>/dev/null || echo 0)" -gt $e ] && break
  if [ -e $d/pid ] && ! kill -0 "$(cat $d/pid)" 2>/dev/null; then [ -e $d/exit ] || x='137 k'; break; fi
  sleep 0.1
done
[ -e $d/exit ] && x=$(cat $d/exit)
printf 'exit %%s\n' "$x"
printf 'out '; tail -c +$((o+1)) $d/out 2>/dev/null | head -c %d | base64 -w0; echo
printf 'err '; tail -c +$((e+1)) $d/err 2>/dev/null | head -c %d | base64 -w0; echo
printf 'said '; head -c 1000 $d/message 2>/dev/null | base64 -w0; echo`, w.dir, w.seen[0], w.seen[1], plainPolls, plainPiece, plainPiece))
	if err != nil {
		return exit, false, err
	}
	news, err := readNews(out)
	if err != nil {
		return exit, false, err
	}
	for i, to := range []io.Writer{w.out, w.errout} {
		b := news.output[i]
		if len(b) == 0 || to == nil {
			continue
		}
		if _, err := to.Write(b); err != nil {
			return exit, false, errors.Join(fmt.Errorf("output: %w", err), w.signal(ctx, "KILL"))
		}
		w.seen[i] += int64(len(b))
	}
	if !news.ended || len(news.output[0]) == plainPiece || len(news.output[1]) == plainPiece {
		return exit, false, nil
	}
	return news.exit, true, nil
}

// news is the answer to a poll.
type news struct {
	ended  bool
	exit   guest.Exit
	output [2][]byte
}

// readNews reads the answer to a poll, which the machine may have made up.
func readNews(text string) (n news, err error) {
	bad := func() (news, error) {
		return news{}, fmt.Errorf("%w: what it says of a command makes no sense: %q", guest.ErrProtocol, clip(text, 100))
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) != 4 {
		return bad()
	}
	var said [3][]byte
	for i, key := range []string{"out", "err", "said"} {
		value, ok := strings.CutPrefix(lines[i+1], key+" ")
		if !ok {
			return bad()
		}
		if said[i], err = base64.StdEncoding.DecodeString(strings.TrimSpace(value)); err != nil || len(said[i]) > plainPiece {
			return bad()
		}
	}
	n.output = [2][]byte{said[0], said[1]}
	status, ok := strings.CutPrefix(lines[0], "exit ")
	if !ok {
		return bad()
	}
	if status = strings.TrimSpace(status); status == "" {
		return n, nil
	}
	digits, how, _ := strings.Cut(status, " ")
	code, cerr := strconv.Atoi(digits)
	if cerr != nil || code < 0 || code > 255 || !strings.Contains("y n k", how) || len(how) != 1 {
		return bad()
	}
	n.ended = true
	n.exit = guest.Exit{Code: code, Started: how != "n", Message: clip(string(said[2]), 1000)}
	if how == "k" {
		n.exit.Signal = "SIGKILL" // nobody was left to write down more
	}
	return n, nil
}

// signal sends a signal to the command's processes.
func (w *watch) signal(ctx context.Context, name string) error {
	_, err := w.p.script(ctx, fmt.Sprintf("for i in $(seq 50); do [ -e %s/pid ] && break; sleep 0.1; done; kill -%s -- -$(cat %s/pid) 2>/dev/null; true", w.dir, name, w.dir))
	return err
}
