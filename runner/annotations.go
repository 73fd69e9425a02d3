package runner

import (
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/terraphim/tgr"
)

// maxJobAnnotations bounds the annotations of a whole job; GitHub shows no more.
const maxJobAnnotations = 50

// annotationOf reads the properties of an error, warning or notice command. Places that make no sense are dropped, as
// GitHub does, and the message stays.
func annotationOf(c command, workspace string) tgr.Annotation {
	a := tgr.Annotation{Level: c.name, Message: c.data, Title: c.props["title"], File: inWorkspace(c.props["file"], workspace)}
	a.Line, a.EndLine = place(c.props["line"]), place(c.props["endline"])
	a.Column, a.EndColumn = place(c.props["col"]), place(c.props["endcolumn"])
	if a.Line == 0 {
		a.Line = a.EndLine
	}
	if a.Column == 0 {
		a.Column = a.EndColumn
	}
	if a.EndLine != 0 && a.EndLine < a.Line {
		a.Line, a.EndLine = 0, 0
	}
	if a.Line == 0 || a.EndLine != 0 && a.EndLine != a.Line || a.EndColumn != 0 && a.EndColumn < a.Column {
		a.Column, a.EndColumn = 0, 0
	}
	return a
}

// place reads a line or column; anything but a positive number is 0.
func place(s string) int {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil || n < 0 || n > 1<<30 {
		return 0
	}
	return n
}

// inWorkspace makes a file's path relative to the workspace where it is below it.
func inWorkspace(file, workspace string) string {
	if !path.IsAbs(file) {
		return strings.TrimPrefix(file, "./")
	}
	return strings.TrimPrefix(path.Clean(file), workspace+"/")
}

// annotate logs a message with its level and keeps it as an annotation, as long as the step and the job have room.
func (r *run) annotate(rec *record, a tgr.Annotation) { r.annotateAs(rec, a, a.Message) }

// annotateAs shows something else in the log than in the annotation.
func (r *run) annotateAs(rec *record, a tgr.Annotation, shown string) {
	r.log(rec, "##["+a.Level+"]"+shown)
	a.Step = rec.Number
	if rec.annotated[a.Level]++; rec.annotated[a.Level] > r.config.Limits.Annotations || len(r.result.Annotations) >= maxJobAnnotations {
		return
	}
	const limit = 64 << 10 // GitHub's, for a message
	a.Message, a.Title, a.File = r.show(a.Message, limit), r.show(a.Title, 255), r.show(a.File, 4096)
	r.result.Annotations = append(r.result.Annotations, a)
}

// show masks a text that leaves the log and bounds its length.
func (r *run) show(s string, limit int) string {
	if r.mask.mute {
		return hidden
	}
	s = r.mask.mask(strings.ToValidUTF8(s, "\ufffd"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit-len("…")], "") + "…"
	}
	return s
}

// error, warn and debug are what the runner itself says in a step's log.

func (r *run) error(rec *record, message string) {
	r.annotate(rec, tgr.Annotation{Level: "error", Message: message})
}

func (r *run) warn(rec *record, message string) {
	r.annotate(rec, tgr.Annotation{Level: "warning", Message: message})
}

func (r *run) debug(rec *record, message string) {
	if r.job.Debug {
		r.log(rec, "##[debug]"+message)
	}
}

// log masks a text and logs its lines. The pieces of one that is longer than the limit are lines of their own.
func (r *run) log(rec *record, text string) {
	if strings.ContainsAny(text, "\r\n") {
		text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
		text = strings.TrimSuffix(text, "\n")
	}
	for line := range strings.SplitSeq(r.mask.mask(strings.ToValidUTF8(text, "\ufffd")), "\n") {
		r.emitAll(rec, line)
	}
}

// logLine is log for one line of valid UTF-8.
func (r *run) logLine(rec *record, line string) { r.emitAll(rec, r.mask.mask(line)) }

// emitAll hands a masked line to the sink, in pieces if it is long.
func (r *run) emitAll(rec *record, line string) {
	for len(line) > r.config.Limits.LineBytes {
		at := r.config.Limits.LineBytes
		for at > 1 && !utf8.RuneStart(line[at]) {
			at--
		}
		r.emit(rec, line[:at])
		line = line[at:]
	}
	r.emit(rec, line)
}

// emit hands one masked line to the sink.
func (r *run) emit(rec *record, line string) {
	if r.mask.mute {
		return
	}
	if r.mute {
		return
	}
	if r.lines++; r.lines <= r.config.Logged {
		return // the log has it from before the server started again
	}
	at := rec.at
	if at.IsZero() {
		at = r.config.Now()
	}
	r.config.Sink.Line(tgr.LogLine{Time: at, Step: rec.Number, Text: line})
}

// addMask masks a value from now on. One that cannot be masked any more silences the log: it must not show.
func (r *run) addMask(value string) error {
	err := r.mask.add(value)
	if err != nil && !r.mask.mute {
		r.emit(r.current, "##[error]There are too many values to mask: from here on, nothing is logged.")
		r.mask.mute = true
	}
	return err
}
