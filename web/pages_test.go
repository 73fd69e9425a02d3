package web

import (
	"bytes"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
)

var update = flag.Bool("update", false, "rewrite the golden pages")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (rewrite with -update): -want +got\n%s", path, diff)
	}
}

// wellFormed checks that a page's elements are closed and its attributes quoted.
func wellFormed(t *testing.T, name, page string) {
	t.Helper()
	page = regexp.MustCompile(`<(meta|link|br|input)([^>]*)>`).ReplaceAllString(strings.ReplaceAll(page, " defer>", ` defer="">`), "<$1$2/>")
	d := xml.NewDecoder(strings.NewReader(page))
	d.Entity = xml.HTMLEntity
	for {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
	}
}

func TestPagesGolden(t *testing.T) {
	m := newMemory().fill()
	running := sampleRun()
	running.ID, running.Number, running.Attempt, running.Title = 8, 4, 2, ""
	running.Status, running.Conclusion, running.Finished, running.Plan = tgr.InProgress, "", time.Time{}, nil
	running.CancelReason = "cancelled by ada: wrong branch"
	m.setRun(running)
	job := sampleJobs()[0]
	job.ID, job.Run, job.Attempt, job.Status, job.Conclusion, job.Reason, job.Finished, job.Annotations = 80, 8, 2, tgr.Queued, "", "waits for a machine", time.Time{}, nil
	job.Steps, job.Started, job.Isolation, job.Tries = nil, time.Time{}, "", 2
	m.setJob(job)
	s := newSite(t, m, nil)
	for name, path := range map[string]string{
		"runs.html": "/", "run_failed.html": "/runs/7", "run_live.html": "/runs/8", "job_failed.html": "/jobs/70",
		"job_from.html": "/jobs/70?from=3", "job_live.html": "/jobs/80", "missing.html": "/runs/9", "older.html": "/?repo=acme%2Fbridge&before=8",
		"none.html": "/?repo=no%2Fone",
	} {
		answer, page := ask(t, "GET", s.url+path, "")
		if got := answer.Header.Get("Content-Security-Policy"); got != csp {
			t.Errorf("%s: policy %q", path, got)
		}
		wellFormed(t, path, page)
		golden(t, name, page)
	}
}

// hostile is a string with everything that a name must not do to a page.
const hostile = `</title></textarea><script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)" x='` +
	"\x1b]8;;javascript:alert(4)\x07link\x1b]8;;\x07\x1b]52;c;ZXZpbA==\x07\u202egpj.exe\u0000\xff{{.Run}} javascript:alert(5)"

func hostileStore() *memory {
	m := newMemory()
	run := sampleRun()
	run.Title, run.WorkflowName, run.WorkflowFile, run.Reason, run.Conclusion = hostile, hostile, hostile, hostile, tgr.Conclusion(hostile)
	run.Event.Ref, run.Event.Actor, run.Event.Name, run.Event.Repo.FullName, run.Event.SHA = hostile, hostile, hostile, hostile, hostile
	m.setRun(run)
	job := sampleJobs()[0]
	job.Name, job.Key, job.Reason, job.Isolation, job.Conclusion = hostile, hostile, hostile, hostile, tgr.Conclusion(hostile)
	job.Steps = []tgr.Step{{Number: 1, Name: hostile, Reason: hostile, Status: tgr.Status(hostile)}}
	job.Annotations = []tgr.Annotation{{Level: hostile, Message: hostile + "\nsecond", Title: hostile, File: hostile}}
	job.Summary = hostile
	m.setJob(job)
	m.append(70, 1, tgr.LogLine{Step: 1, Text: hostile}, tgr.LogLine{Step: 1, Text: "\x1b[31m" + hostile}, tgr.LogLine{Step: 2, Text: strings.Repeat("long ", 10_000)})
	m.closeLog(70, 1)
	return m
}

// isText checks that nothing of a hostile string has become a part of a page.
func isText(t *testing.T, path, page string) {
	t.Helper()
	for _, bad := range []string{"<script>", "<img", "\x1b", "\a", "\u202e", "\x00"} {
		if strings.Contains(page, bad) {
			t.Errorf("%s holds %q", path, bad)
		}
	}
	for _, tag := range regexp.MustCompile(`<[a-zA-Z/!][^>]*>`).FindAllString(page, -1) {
		if strings.Contains(tag, " on") || strings.Contains(tag, "style=") || strings.Contains(tag, `="javascript:`) {
			t.Errorf("%s: the tag %s", path, tag)
		}
	}
	if strings.Count(page, "<script") != 1 || strings.Contains(page, "<style") {
		t.Errorf("%s: scripts or styles of its own", path)
	}
}

func TestHostileNamesAndLines(t *testing.T) {
	s := newSite(t, hostileStore(), nil)
	for _, path := range []string{"/", "/runs/7", "/jobs/70", "/runs/%3Cscript%3E", "/%3Cscript%3Ealert(1)%3C/script%3E", "/?repo=%3Cscript%3E&before=x"} {
		_, page := ask(t, "GET", s.url+path, "")
		isText(t, path, page)
		if strings.HasPrefix(path, "/jobs") && (!strings.Contains(page, "&lt;script&gt;alert(1)") || !strings.Contains(page, "bytes more in the raw log")) {
			t.Errorf("%s does not show the log", path)
		}
	}
}

func TestNothingIsInline(t *testing.T) {
	files, err := filepath.Glob("templates/*.html")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if m := regexp.MustCompile(`(?i)\son\w+=|style=|<style|<script>|javascript:`).Find(b); m != nil {
			t.Errorf("%s holds %q, which the policy forbids", f, m)
		}
	}
	js, err := os.ReadFile("static/live.js")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("} {
		if bytes.Contains(js, []byte(bad)) {
			t.Errorf("live.js uses %s", bad)
		}
	}
}

func TestStaticFiles(t *testing.T) {
	s := newSite(t, newMemory(), nil)
	for path, want := range map[string]string{"/static/style.css": "text/css; charset=utf-8", "/static/live.js": "text/javascript; charset=utf-8", "/static/icon.svg": "image/svg+xml"} {
		if answer, body := ask(t, "GET", s.url+path, ""); answer.StatusCode != 200 || answer.Header.Get("Content-Type") != want || body == "" {
			t.Errorf("%s: %d %v", path, answer.StatusCode, answer.Header)
		}
	}
	for _, path := range []string{"/static/", "/static/nothing", "/static/..%2fpages.go", "/static/%2e%2e%2fpages.go"} {
		if answer, _ := ask(t, "GET", s.url+path, ""); answer.StatusCode != 404 {
			t.Errorf("%s: %d", path, answer.StatusCode)
		}
	}
}

func TestLongLogIsPaged(t *testing.T) {
	m := newMemory().fill()
	for n := range pageLines + 10 {
		m.append(71, 1, tgr.LogLine{Text: fmt.Sprint("n", n)})
	}
	m.closeLog(71, 1)
	s := newSite(t, m, nil)
	_, page := ask(t, "GET", s.url+"/jobs/71", "")
	if next := fmt.Sprintf(`<a href="/jobs/71?from=%d" rel="next">`, pageLines+1); !strings.Contains(page, next) || strings.Count(page, `class="line"`) != pageLines {
		t.Errorf("%d lines, without %s", strings.Count(page, `class="line"`), next)
	}
	_, page = ask(t, "GET", fmt.Sprintf("%s/jobs/71?from=%d", s.url, pageLines+1), "")
	if strings.Contains(page, `rel="next"`) || strings.Count(page, `class="line"`) != 10 {
		t.Errorf("last page: %d lines", strings.Count(page, `class="line"`))
	}
}
