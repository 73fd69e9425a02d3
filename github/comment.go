package github

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/terraphim/tgr"
)

// Bounds of the comment. GitHub takes 65,536 characters.
const (
	maxComment      = 65_000 // bytes
	maxSection      = 20_000 // bytes of one workflow's part
	maxJobsShown    = 60
	maxFailedShown  = 10
	commentMarker   = "<!-- tgr: one comment for all workflows of this pull request -->"
	sectionEnd      = "<!-- tgr:end -->"
	commentHeadline = "## Workflow results"
)

// sectionBegin is written by section; nothing hostile can hold it, because "<" is escaped everywhere else.
var sectionBegin = lazily(`^<!-- tgr:begin file=(\S*) run=(\d+) attempt=(\d+) -->$`)

// comment builds this workflow's part of the pull request's comment.
func (b *builder) comment(jobs []tgr.Job) {
	file := b.run.WorkflowFile
	if file == "" && len(jobs) == 0 {
		file = "plan"
	}
	var s strings.Builder
	title := escape(runes(b.workflow(), 120))
	if link := b.o.URL(b.run.ID, 0); link != "" {
		title = "[" + title + "](" + safeURL(link) + ")"
	}
	fmt.Fprintf(&s, "### %s %s\n\nCommit %s", resultSign(b.run), title, b.sha[:min(10, len(b.sha))])
	if b.run.Attempt > 1 {
		fmt.Fprintf(&s, ", attempt %d", b.run.Attempt)
	}
	if d := b.took(b.run.Started, b.run.Finished); d != "" && b.run.Status.Done() {
		s.WriteString(", " + d)
	}
	s.WriteString(".\n\n")
	if b.run.Reason != "" {
		s.WriteString(escape(runes(b.run.Reason, 1000)) + "\n\n")
	}
	b.jobTable(&s, jobs)
	if b.o.Hint != nil && b.run.Status.Done() {
		if hint := b.o.Hint(b.run, jobs); hint != "" {
			s.WriteString(escape(runes(hint, 600)) + "\n\n")
		}
	}
	b.failures(&s, jobs)
	b.add(KindComment, fmt.Sprintf("%d/%d/%s", b.run.Event.Repo.ID, b.run.Event.Number, file), CommentReport{
		Repo: b.run.Event.Repo.FullName, Number: b.run.Event.Number, Section: file, Run: int64(b.run.ID), Attempt: b.run.Attempt,
		Body: s.String(),
	})
}

// resultSign is the sign of the run as a whole.
func resultSign(run tgr.Run) string {
	sign, _, _ := strings.Cut(result(run.Status, run.Conclusion), " ")
	return sign
}

// safeURL keeps an address of ours from ending the Markdown link that it is in.
func safeURL(s string) string {
	return strings.NewReplacer("(", "%28", ")", "%29", " ", "%20", "<", "%3C", ">", "%3E", "\n", "").Replace(s)
}

func (b *builder) jobTable(s *strings.Builder, jobs []tgr.Job) {
	if len(jobs) == 0 {
		return
	}
	s.WriteString("| Job | Result | Steps | Duration |\n|---|---|---|---|\n")
	for i, j := range jobs {
		if i == maxJobsShown {
			fmt.Fprintf(s, "\n%d more jobs.\n", len(jobs)-i)
			break
		}
		name := escape(runes(jobName(j), 100))
		if link := b.o.URL(b.run.ID, j.ID); link != "" {
			name = "[" + name + "](" + safeURL(link) + ")"
		}
		done := 0
		for _, st := range j.Steps {
			if st.Status.Done() {
				done++
			}
		}
		steps := ""
		if len(j.Steps) > 0 {
			steps = fmt.Sprintf("%d/%d", done, len(j.Steps))
		}
		if st := failedStep(j); st != nil {
			steps += " ❌ " + escape(runes(st.Name, 60))
		}
		word := result(j.Status, j.Conclusion)
		if j.Status.Done() && j.Conclusion.Failed() && j.ContinueOnError {
			word += " (may fail)"
		}
		fmt.Fprintf(s, "| %s | %s | %s | %s |\n", name, word, steps, b.took(j.Started, j.Finished))
	}
	s.WriteString("\n")
}

func jobName(j tgr.Job) string {
	if j.Name != "" {
		return j.Name
	}
	return j.Key
}

// failures shows for each failed job why it failed, its steps, and the first lines that tell of it.
func (b *builder) failures(s *strings.Builder, jobs []tgr.Job) {
	shown := 0
	for _, j := range jobs {
		if !j.Status.Done() || !j.Conclusion.Failed() {
			continue
		}
		if shown++; shown > maxFailedShown {
			s.WriteString("More jobs failed; their pages have the rest.\n\n")
			return
		}
		var d strings.Builder
		fmt.Fprintf(&d, "<details><summary>%s: %s</summary>\n\n", escape(runes(jobName(j), 100)), escape(runes(b.describe(j), 200)))
		if b.o.Why != nil {
			for part := range strings.SplitSeq(b.o.Why(j), "\n\n") {
				d.WriteString(escape(runes(part, 800)) + "\n\n")
			}
		}
		d.WriteString(b.summary(j) + "\n\n" + b.lines(j) + "\n</details>\n\n")
		if s.Len()+d.Len() > maxSection {
			fmt.Fprintf(s, "%s: %s\n\n", escape(runes(jobName(j), 100)), escape(runes(b.describe(j), 200)))
			continue
		}
		s.WriteString(d.String())
	}
}

// section is one workflow's part of a comment.
type section struct {
	file         string
	run, attempt int64
	body         string
}

func (s section) String() string {
	return fmt.Sprintf("<!-- tgr:begin file=%s run=%d attempt=%d -->\n%s\n%s\n", url.PathEscape(s.file), s.run, s.attempt, strings.TrimSpace(s.body), sectionEnd)
}

// parseSections reads the parts of a comment of ours back. What is not between the marks is dropped.
func parseSections(comment string) []section {
	var all []section
	var cur *section
	var body []string
	for line := range strings.SplitSeq(strings.ReplaceAll(comment, "\r\n", "\n"), "\n") {
		m := sectionBegin().FindStringSubmatch(line)
		switch {
		case m != nil:
			file, err := url.PathUnescape(m[1])
			run, err1 := strconv.ParseInt(m[2], 10, 64)
			attempt, err2 := strconv.ParseInt(m[3], 10, 64)
			if err != nil || err1 != nil || err2 != nil {
				cur = nil
				continue
			}
			cur, body = &section{file: file, run: run, attempt: attempt}, nil
		case line == sectionEnd && cur != nil:
			cur.body = strings.Join(body, "\n")
			all = append(all, *cur)
			cur = nil
		case cur != nil:
			body = append(body, line)
		}
	}
	return all
}

// mergeComment puts one workflow's part into the comment, in place of its earlier one; changed is false where a
// newer run of the workflow has reported already, or nothing changed. The parts are in the order of their files; those
// of the oldest runs lose their content when all together are too large.
func mergeComment(comment string, r CommentReport) (merged string, changed bool) {
	next := section{file: r.Section, run: r.Run, attempt: int64(r.Attempt), body: clip(r.Body, maxSection+8_000)}
	parts := parseSections(comment)
	found := false
	for i, s := range parts {
		if s.file != next.file {
			continue
		}
		if s.run > next.run || s.run == next.run && s.attempt > next.attempt {
			return comment, false
		}
		parts[i], found = next, true
	}
	if !found {
		parts = append(parts, next)
	}
	slices.SortStableFunc(parts, func(a, b section) int { return strings.Compare(a.file, b.file) })
	render := func() string {
		var b strings.Builder
		b.WriteString(commentMarker + "\n" + commentHeadline + "\n\n")
		for _, s := range parts {
			b.WriteString(s.String())
		}
		return b.String()
	}
	for merged = render(); len(merged) > maxComment; merged = render() {
		oldest := -1
		for i, s := range parts {
			if len(s.body) > 200 && s.file != next.file && (oldest < 0 || s.run < parts[oldest].run) {
				oldest = i
			}
		}
		if oldest < 0 { // hundreds of workflows: the first ones have to do
			parts = parts[:len(parts)-1]
			continue
		}
		head, _, _ := strings.Cut(parts[oldest].body, "\n")
		parts[oldest].body = clip(head, 150) + "\n"
	}
	return merged, merged != comment
}
