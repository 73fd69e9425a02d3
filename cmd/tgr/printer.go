package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/terraphim/tgr"
)

// printer shows jobs and steps as they go on: for people a line per step with the log below it, for programs JSON
// lines. Its methods are safe for concurrent use. What they write is out soon after, and when flush returns.
type printer struct {
	mu    sync.Mutex
	out   *bufio.Writer
	timer *time.Timer // flushes; it runs while there is something to flush
	armed bool
	json  bool
	color bool
	quiet bool                 // no log lines
	wordy bool                 // also what a step is given: its script, inputs and environment
	many  bool                 // several jobs: each line says whose it is
	flows map[tgr.RunID]string // several workflows, and their jobs may have the same names: each line says of which it is
	steps map[tgr.JobID][]tgr.Step
	given map[tgr.JobID]heading
	ours  map[tgr.JobID]tgr.Step // a step that no workflow names, of which nothing was shown yet

	err    error         // the first error of writing
	broken chan struct{} // closed with it
	ended  bool          // nothing more is shown
}

func newPrinter(out io.Writer, asJSON, color bool) *printer {
	p := &printer{out: bufio.NewWriterSize(out, 64<<10), json: asJSON, color: color,
		steps: map[tgr.JobID][]tgr.Step{}, given: map[tgr.JobID]heading{}, ours: map[tgr.JobID]tgr.Step{}, broken: make(chan struct{})}
	p.timer = time.AfterFunc(time.Hour, p.flush)
	p.timer.Stop()
	return p
}

// flushAfter is how long a line may wait for others to be written with.
const flushAfter = 20 * time.Millisecond

// flush writes what waits.
func (p *printer) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = false
	if p.err == nil {
		p.fail(p.out.Flush())
	}
}

func (p *printer) fail(err error) {
	if err != nil && p.err == nil {
		p.err, p.ended = err, true
		close(p.broken)
	}
}

// record is one JSON line. Type is log, step, job or run.
type record struct {
	Type    string       `json:"type"`
	Job     tgr.JobID    `json:"job_id,omitempty"`
	Name    string       `json:"job,omitempty"`
	Log     *tgr.LogLine `json:"log,omitempty"`
	Step    *tgr.Step    `json:"step,omitempty"`
	JobDone *tgr.Job     `json:"result,omitempty"`
	Run     *tgr.Run     `json:"run,omitempty"`
}

func (p *printer) write(s string) {
	if p.ended {
		return
	}
	_, err := p.out.WriteString(s)
	p.fail(err)
	if !p.armed {
		p.armed = true
		p.timer.Reset(flushAfter)
	}
}

// say shows a word of ours.
func (p *printer) say(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.json {
		p.write(s)
	}
}

// end shows a last word; whatever happens from then on is of no interest any more.
func (p *printer) end(s string) {
	p.say(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
}

func (p *printer) record(r record) {
	data, err := json.Marshal(r)
	if err != nil {
		data = []byte(fmt.Sprintf(`{"type":"error","message":%q}`, err))
	}
	p.write(string(data) + "\n")
}

// Line shows a line of a job's log.
func (p *printer) Line(j tgr.Job, l tgr.LogLine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.json {
		p.record(record{Type: "log", Job: j.ID, Name: j.Name, Log: &l})
		return
	}
	if j.Kind == tgr.PlanJob || p.quiet {
		return
	}
	if p.leftOut(j.ID, l) {
		return
	}
	text, ok := readable(l.Text)
	if !ok {
		return
	}
	p.headline(j)
	p.write(p.prefix(j))
	p.write(p.dim("    │ "))
	p.write(text)
	p.write("\n")
}

// leftOut reports whether a line is part of what a step is given, which GitHub shows folded, or what every job says as it
// begins and ends.
func (p *printer) leftOut(job tgr.JobID, l tgr.LogLine) bool {
	if p.wordy || l.Step == 0 {
		return false
	}
	h := p.given[job]
	if h.step != l.Step || !h.open {
		if steps := p.steps[job]; l.Step <= len(steps) && isOurs(steps[l.Step-1]) && isRoutine(l.Text) {
			p.given[job] = heading{step: l.Step, open: l.Text == "##[group]Machine"}
			return true
		}
	}
	switch {
	case h.step != l.Step: // its first line
		h = heading{step: l.Step, open: strings.HasPrefix(l.Text, "##[group]Run ")}
		p.given[job] = h
		return h.open
	case h.open && l.Text == "##[endgroup]":
		p.given[job] = heading{step: l.Step}
	}
	return h.open
}

// heading is whether the lines are seen by which a step of a job says what it is given.
type heading struct {
	step int
	open bool
}

// isOurs reports whether a step is the server's own, as every job has them.
func isOurs(s tgr.Step) bool { return s.ID == "__setup" || s.ID == "__complete" }

// isRoutine reports whether a line of such a step says nothing that anybody wants to know of a job that went well.
func isRoutine(text string) bool {
	switch text {
	case "##[group]Machine", "Prepare workflow directory", "Prepare all required actions":
		return true
	}
	return strings.HasPrefix(text, "Runner name: ") || strings.HasPrefix(text, "Complete job name: ") || strings.HasPrefix(text, "Job result: ")
}

// headline shows that a step of ours began, once something else of it is shown.
func (p *printer) headline(j tgr.Job) {
	if s, waits := p.ours[j.ID]; waits {
		delete(p.ours, j.ID)
		p.begun(j, s)
	}
}

// Steps shows the steps that began or ended since the last time.
func (p *printer) Steps(j tgr.Job, steps []tgr.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.steps[j.ID]
	p.steps[j.ID] = steps
	for i, s := range steps {
		if i < len(before) && before[i].Status == s.Status {
			continue
		}
		if s.Status == tgr.Pending {
			continue
		}
		if p.json {
			p.record(record{Type: "step", Job: j.ID, Name: j.Name, Step: &s})
			continue
		}
		p.step(j, s)
	}
}

// maxName is how many characters are shown of a step's name, which may be a line of a script.
const maxName = 100

func (p *printer) step(j tgr.Job, s tgr.Step) {
	if isOurs(s) && !p.wordy {
		if s.Status == tgr.InProgress {
			p.ours[j.ID] = s
			return
		}
		if _, waits := p.ours[j.ID]; waits && s.Conclusion == tgr.Success {
			delete(p.ours, j.ID)
			return
		}
	}
	p.headline(j)
	name := shortened(s.Name)
	switch {
	case s.Status == tgr.InProgress:
		p.begun(j, s)
	case s.Conclusion == tgr.Skipped:
		p.write(p.prefix(j) + p.dim("  – "+name+" (skipped)") + "\n")
	default:
		note := ""
		if s.Conclusion == tgr.Success && s.Outcome == tgr.Failure {
			note = " (failed, and may)"
		}
		p.write(fmt.Sprintf("%s  %s %s%s %s\n", p.prefix(j), p.mark(s.Conclusion), name, note, p.dim(seconds(s.Finished.Sub(s.Started)))))
	}
}

func (p *printer) begun(j tgr.Job, s tgr.Step) {
	p.write(p.prefix(j) + p.paint(36, "  ▶ ") + shortened(s.Name) + "\n")
}

// shortened is a step's name for one line.
func shortened(name string) string {
	name = printable(name)
	if short := []rune(name); len(short) > maxName {
		name = string(short[:maxName-1]) + "…"
	}
	return name
}

// Boot shows that a job begins, where there is something to say: that it is not for the first time, or that its machine
// takes a while.
func (p *printer) Boot(j tgr.Job, slow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.json {
		return
	}
	if j.Tries > 1 {
		p.write(p.prefix(j) + p.dim(fmt.Sprintf("  … try %d, as the fault was ours", j.Tries)) + "\n")
	}
	if slow {
		p.write(p.prefix(j) + p.dim("  … starting a machine") + "\n")
	}
}

// Job shows how a job ended.
func (p *printer) Job(workflow string, j tgr.Job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.json {
		p.record(record{Type: "job", Job: j.ID, Name: j.Name, JobDone: &j})
		return
	}
	took := ""
	if !j.Started.IsZero() {
		took = " in " + seconds(j.Finished.Sub(j.Started))
	}
	reason := ""
	if j.Reason != "" {
		reason = ": " + printable(j.Reason)
	}
	note := ""
	if j.ContinueOnError && j.Conclusion.Failed() {
		note = " (and may: continue-on-error)"
	}
	where := ""
	if j.Isolation != "" {
		where = p.dim(" [" + j.Isolation + "]")
	}
	p.write(fmt.Sprintf("%s %s / %s: %s%s%s%s%s\n", p.mark(j.Conclusion), printable(workflow), printable(j.Name), j.Conclusion, note, took, where, reason))
}

// Run shows how a run ended; of one that could not be planned it is all there is.
func (p *printer) Run(r tgr.Run) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.json:
		p.record(record{Type: "run", Run: &r})
	case r.WorkflowName == "" && r.Conclusion == tgr.Skipped: // an event that starts nothing: the verdict says so
	case r.Conclusion == tgr.StartupFailure || r.Reason != "":
		p.write(fmt.Sprintf("%s %s: %s\n%s\n", p.mark(r.Conclusion), printable(r.WorkflowName), r.Conclusion, r.Reason))
	}
}

func (p *printer) prefix(j tgr.Job) string {
	if !p.many {
		return ""
	}
	name := j.Name
	if flow := p.flows[j.Run]; flow != "" {
		name = flow + " / " + name
	}
	return p.paint(34, "["+printable(name)+"] ")
}

func (p *printer) mark(c tgr.Conclusion) string {
	switch c {
	case tgr.Success:
		return p.paint(32, "✓")
	case tgr.Skipped:
		return p.dim("–")
	case tgr.Cancelled:
		return p.paint(33, "⊘")
	}
	return p.paint(31, "✗")
}

func (p *printer) paint(color int, s string) string {
	if !p.color {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", color, s)
}

func (p *printer) dim(s string) string { return p.paint(2, s) }

func seconds(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 10*time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// readable is a log line for a terminal: the commands that fold lines are shown as headings, and what could
// move the cursor, set the title or write to the clipboard is gone. ok is false for a line that shows nothing.
func readable(text string) (s string, ok bool) {
	if plain(text) {
		return text, true
	}
	for _, hide := range []string{"##[endgroup]", "::endgroup::"} {
		if strings.HasPrefix(text, hide) {
			return "", false
		}
	}
	return colored(unmarked(text)), true
}

// unmarked is a line of a log with words instead of the runner's mark at its beginning.
func unmarked(text string) string {
	for _, cmd := range []string{"##[group]", "##[endgroup]", "##[command]", "##[debug]", "##[section]"} {
		text = strings.TrimPrefix(text, cmd)
	}
	for mark, word := range map[string]string{"##[error]": "error: ", "##[warning]": "warning: ", "##[notice]": "notice: "} {
		if rest, found := strings.CutPrefix(text, mark); found {
			text = word + rest
		}
	}
	return text
}

// plain reports whether a text can be shown as it is, at a glance: it is ASCII, and neither a command nor a control.
func plain(s string) bool {
	if strings.HasPrefix(s, "##[") || strings.HasPrefix(s, "::") {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// printable is text without any control character.
func printable(s string) string {
	if plain(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == 0xfeff {
			return ' '
		}
		return r
	}, s)
}

// colored is printable, but for the escape sequences that only set colours.
func colored(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		i := strings.IndexByte(s, 0x1b)
		if i < 0 {
			break
		}
		b.WriteString(printable(s[:i]))
		s = s[i+1:]
		if end := sgrEnd(s); end > 0 {
			b.WriteString("\x1b" + s[:end])
			s = s[end:]
		}
	}
	b.WriteString(printable(s))
	return b.String()
}

// sgrEnd is the length of the rest of an SGR sequence, "[1;31m", at the start of s; 0 if there is none.
func sgrEnd(s string) int {
	if !strings.HasPrefix(s, "[") {
		return 0
	}
	for i := 1; i < len(s) && i < 32; i++ {
		switch c := s[i]; {
		case c == 'm':
			return i + 1
		case c != ';' && (c < '0' || c > '9'):
			return 0
		}
	}
	return 0
}
