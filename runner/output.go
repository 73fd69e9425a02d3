package runner

import (
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// maxCommand bounds the line of a workflow command, in bytes. Plain text may be longer: it is split.
const maxCommand = 1 << 20

// output is where the output of one process goes: it splits it into lines, carries out the workflow commands among
// them and logs the rest, masked. It keeps no more than one line, and blocks while the sink does.
type output struct {
	unit *unit

	mu     sync.Mutex // a machine may write from its own goroutine; taken before the run's lock
	buf    []byte     // of the current line
	cr     bool       // the last byte was a carriage return: a line feed right after it is part of the same end
	drop   bool       // the rest of the current line is thrown away
	closed bool
	split  bool     // the beginning of the current line was logged already
	did    []string // lines that did something, for the tape; nil without one

	echo       bool            // show commands that are carried out
	stop       string          // commands are off until this token; "": they are on
	deprecated map[string]bool // commands that were warned of
}

func newOutput(u *unit) *output {
	return &output{unit: u, echo: u.run.job.Debug, deprecated: map[string]bool{}}
}

// Write takes the next bytes. It never fails: a step's output must not end the step.
func (o *output) Write(p []byte) (int, error) {
	defer o.lock()()
	limit := o.unit.run.config.Limits.LineBytes
	// A flood is looked at, copied and given a time once for many lines.
	o.unit.rec.at = o.unit.run.config.Now()
	defer func() { o.unit.rec.at = time.Time{} }()
	s := string(p)
	valid := utf8.ValidString(s)
	feed, ret := -1, -1 // where the next line feed and carriage return are
	for i := 0; i < len(s) && !o.closed; {
		if o.cr {
			o.cr = false
			if s[i] == '\n' {
				i++
				continue
			}
		}
		feed, ret = nextByte(s, i, feed, '\n'), nextByte(s, i, ret, '\r')
		end := min(feed, ret)
		switch {
		case end == len(s):
			o.append(s[i:])
			return len(p), nil
		case len(o.buf) == 0 && !o.drop && end-i <= limit && valid:
			o.line(s[i:end])
		case len(o.buf) == 0 && !o.drop && end-i <= limit:
			o.line(strings.ToValidUTF8(s[i:end], "\ufffd"))
		default:
			o.append(s[i:end])
			o.flush()
		}
		o.cr = end == ret
		i = end + 1
	}
	return len(p), nil
}

// lock takes what a write needs.
func (o *output) lock() (unlock func()) {
	o.mu.Lock()
	o.unit.run.mu.Lock()
	return func() {
		o.unit.run.mu.Unlock()
		o.mu.Unlock()
	}
}

// nextByte is where b is next in s, from i on: at, if that is not behind i. It is len(s) if there is none.
func nextByte(s string, i, at int, b byte) int {
	if at >= i {
		return at
	}
	if at = strings.IndexByte(s[i:], b); at >= 0 {
		return i + at
	}
	return len(s)
}

// Close logs what is left of a line without an end. Nothing is taken after it.
func (o *output) Close() error {
	defer o.lock()()
	if !o.closed && len(o.buf) > 0 {
		o.flush()
	}
	o.closed = true
	return nil
}

// append adds to the current line. Of a line that is too long, the beginning is logged at once.
func (o *output) append(p string) {
	limit := o.unit.run.config.Limits.LineBytes
	for len(p) > 0 && !o.drop {
		if len(o.buf) < limit { // the common case, and a bound for the copies below
			n := min(len(p), limit-len(o.buf))
			o.buf = append(o.buf, p[:n]...)
			p = p[n:]
			continue
		}
		if o.isCommand() {
			if len(o.buf)+len(p) > maxCommand {
				o.unit.run.taped.spoil("a workflow command is longer than %d bytes", maxCommand)
				o.unit.fail(fmt.Sprintf("a workflow command is longer than %d bytes", maxCommand))
				o.buf, o.drop = nil, true
				return
			}
			o.buf = append(o.buf, p...)
			return
		}
		if len(o.buf) < limit+o.unit.run.mask.longest() {
			n := min(len(p), limit+o.unit.run.mask.longest()-len(o.buf))
			o.buf = append(o.buf, p[:n]...)
			p = p[n:]
			continue
		}
		o.splitLine()
	}
}

// isCommand reports whether the current line begins as a workflow command does.
func (o *output) isCommand() bool {
	head := strings.TrimLeft(string(o.buf[:min(len(o.buf), 256)]), " \t")
	name, ok := strings.CutPrefix(head, "::")
	if !ok {
		if _, name, ok = strings.Cut(head, "##["); !ok {
			return false
		}
	}
	if end := strings.IndexAny(name, " :]"); end >= 0 {
		name = name[:end]
	}
	return o.registered(strings.ToLower(name))
}

// splitLine logs as much of an unended line as can be masked for certain.
func (o *output) splitLine() {
	end := len(o.buf)
	for i := 1; i < utf8.UTFMax && i < len(o.buf); i++ { // an incomplete character waits for its end
		if utf8.RuneStart(o.buf[end-i]) {
			if !utf8.FullRune(o.buf[end-i:]) {
				end -= i
			}
			break
		}
	}
	text := strings.ToValidUTF8(string(o.buf[:end]), "\ufffd")
	tail := o.buf[end:]
	o.split = true
	done, rest := o.unit.run.mask.cut(text)
	if done == "" { // cannot be: the buffer is longer than any pattern. Rather lose a line than loop
		done, rest = hidden, ""
	}
	o.unit.run.emit(o.unit.rec, done)
	o.buf = append([]byte(rest), tail...)
}

// flush ends the current line.
func (o *output) flush() {
	o.split = false
	if o.drop {
		o.drop, o.buf = false, nil
		return
	}
	line := o.buf
	if o.buf = o.buf[:0]; cap(o.buf) > 2*o.unit.run.config.Limits.LineBytes {
		o.buf = nil
	}
	o.line(strings.ToValidUTF8(string(line), "\ufffd"))
}

// line takes one whole line of valid UTF-8.
func (o *output) line(line string) {
	if mayBeCommand(line) {
		if c, ok := parseCommand(line, o.registered); ok && o.carryOut(c) {
			o.note(line)
			return
		}
	}
	shown, touched := o.unit.run.match(o.unit, line)
	if touched {
		o.note(line)
	}
	if !shown {
		o.unit.run.logLine(o.unit.rec, line)
	}
}

// note keeps a line that did something, for the tape.
func (o *output) note(line string) {
	if o.unit.run.taped != nil {
		o.did = append(o.did, strings.Clone(line))
	}
}

// registered says which names are commands right now: while they are stopped, the token that resumes them is one, too.
func (o *output) registered(name string) bool {
	return registeredCommand(name) || o.stop != "" && name == o.stop
}

// carryOut does what a command asks for; false means that it is text.
func (o *output) carryOut(c command) bool {
	u := o.unit
	if o.stop != "" {
		if c.name != o.stop {
			return false
		}
		o.stop = ""
		u.run.log(u.rec, c.raw)
		u.run.debug(u.rec, "Resume processing commands")
		return true
	}
	if o.echo && !quiet(c.name) {
		u.run.log(u.rec, c.raw)
	}
	if err := o.do(c); err != nil {
		shown := c.raw
		if quiet(c.name) {
			shown = c.name
		}
		u.fail(fmt.Sprintf("Unable to process command '%s' successfully: %v", excerpt(shown), err))
	}
	return true
}

// quiet reports whether a command is never echoed: it shows itself, or must not be shown.
func quiet(name string) bool {
	switch name {
	case cmdGroup, cmdEndGroup, cmdDebug, cmdNotice, cmdWarning, cmdError, cmdAddMask, cmdEcho, cmdStop:
		return true
	}
	return false
}

// do carries out one command. An error fails the step, which runs on.
func (o *output) do(c command) error {
	u := o.unit
	switch c.name {
	case cmdDebug:
		u.run.debug(u.rec, c.data)
	case cmdNotice, cmdWarning, cmdError:
		u.run.annotate(u.rec, annotationOf(c, u.at().inside(u.run.config.Dirs.Workspace)))
	case cmdGroup, cmdEndGroup:
		u.run.log(u.rec, "##["+c.name+"]"+c.data)
	case cmdAddMask:
		if strings.TrimSpace(c.data) == "" {
			u.run.warn(u.rec, "Can't add secret mask for empty string in ##[add-mask] command.")
			return nil
		}
		if o.echo {
			u.run.log(u.rec, "::"+cmdAddMask+"::"+hidden)
		}
		return u.run.addMask(c.data)
	case cmdStop:
		return o.stopCommands(c)
	case cmdEcho:
		switch on := strings.ToLower(strings.TrimSpace(c.data)); on {
		case "on", "off":
			o.echo = on == "on"
		default:
			return userError("Invalid echo command value. Possible values can be: 'on', 'off'. Current value is: '%s'", excerpt(c.data))
		}
	case cmdAddMatcher:
		return u.addMatcher(c.data)
	case cmdRemoveMatcher:
		return u.removeMatcher(c)
	case cmdSetOutput, cmdSaveState:
		return o.legacyPair(c)
	case cmdSetEnv, cmdAddPath:
		return o.unsecure(c)
	}
	return nil
}

// stopCommands turns commands off until the token is printed as a command.
func (o *output) stopCommands(c command) error {
	token := strings.ToLower(c.data)
	switch {
	case strings.TrimSpace(token) == "" || token == "pause-logging" || registeredCommand(token):
		return userError("Invalid stop token '%s': it must not be empty, nor the name of a command", excerpt(c.data))
	case strings.ContainsAny(token, " :]"):
		return userError("Invalid stop token '%s': it must not have spaces, colons or brackets", excerpt(c.data))
	}
	if len(c.data) > 6 { // a shorter one would hide too much
		if err := o.unit.run.addMask(c.data); err != nil {
			return err
		}
	}
	o.stop = token
	o.unit.run.log(o.unit.rec, c.raw)
	return nil
}

// legacyPair carries out set-output and save-state, which are deprecated and still work.
func (o *output) legacyPair(c command) error {
	u := o.unit
	if !o.deprecated[c.name] {
		o.deprecated[c.name] = true
		u.run.warn(u.rec, "The `"+c.name+"` command is deprecated and will be disabled soon. Please upgrade to using Environment Files. "+
			"For more information see: https://github.blog/changelog/2022-10-11-github-actions-deprecating-save-state-and-set-output-commands/")
	}
	name := c.props["name"]
	if name == "" {
		return userError("Required field 'name' is missing in ##[%s] command.", c.name)
	}
	if c.name == cmdSetOutput {
		return u.setOutput(name, c.data)
	}
	return u.saveState(name, c.data)
}

// unsecure carries out set-env and add-path, which anything that a step prints could abuse: they are refused unless the
// workflow itself asks for them.
func (o *output) unsecure(c command) error {
	u := o.unit
	if !u.allowsUnsecure() {
		return userError("The `%s` command is disabled. Please upgrade to using Environment Files or opt into unsecure command execution "+
			"by setting the `ACTIONS_ALLOW_UNSECURE_COMMANDS` environment variable to `true`. "+
			"For more information see: https://github.blog/changelog/2020-10-01-github-actions-deprecating-set-env-and-add-path-commands/", c.name)
	}
	if c.name == cmdAddPath {
		return u.addPath(c.data)
	}
	name := c.props["name"]
	if name == "" {
		return userError("Required field 'name' is missing in ##[set-env] command.")
	}
	return u.setEnv(name, c.data)
}
