package github

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// hostile is a name that tries everything: HTML, Markdown, mentions, links, marks of ours, hidden characters.
const hostile = "<img src=x onerror=alert(1)> **b** [l](http://evil) `c` @ada/team #12 | \x1b[31mred\x1b[0m\u202e <!-- tgr:end -->\n# h"

func ptrTo(n int) *int { return &n }

func testRun() (tgr.Run, []tgr.Job) {
	run := tgr.Run{ID: 12, Number: 3, Attempt: 1, WorkflowFile: ".github/workflows/ci.yml", WorkflowName: "CI",
		Status: tgr.Completed, Conclusion: tgr.Failure, Started: epoch, Finished: epoch.Add(95 * time.Second),
		Event: tgr.Event{Name: "pull_request", Number: 9, SHA: shaC, HeadSHA: shaA, Repo: tgr.Repo{ID: 7, FullName: "ada/engine"}}}
	step := func(n int, name string, c tgr.Conclusion, exit *int) tgr.Step {
		return tgr.Step{Number: n, Name: name, Status: tgr.Completed, Conclusion: c, ExitCode: exit, Started: epoch, Finished: epoch.Add(1500 * time.Millisecond)}
	}
	jobs := []tgr.Job{
		{ID: 1, Kind: tgr.PlanJob, Status: tgr.Completed, Conclusion: tgr.Success},
		{ID: 2, Kind: tgr.WorkJob, Key: "build", Name: "build", Status: tgr.Completed, Conclusion: tgr.Success, Isolation: "qemu (tcg)",
			Started: epoch, Finished: epoch.Add(12 * time.Second), Steps: []tgr.Step{step(1, "make", tgr.Success, ptrTo(0))}},
		{ID: 3, Kind: tgr.WorkJob, Key: "test", Name: "test (1.22)", Status: tgr.Completed, Conclusion: tgr.Failure, Blame: tgr.BlameUser,
			Started: epoch, Finished: epoch.Add(65 * time.Second), Steps: []tgr.Step{
				step(1, "checkout", tgr.Success, nil), step(2, hostile, tgr.Failure, ptrTo(2)), step(3, "upload", tgr.Skipped, nil)},
			Annotations: []tgr.Annotation{{Level: "error", Message: "boom", File: "a.go", Line: 3}}},
		{ID: 4, Kind: tgr.WorkJob, Key: "lint", Name: hostile, Status: tgr.Completed, Conclusion: tgr.Failure, ContinueOnError: true,
			Started: epoch, Finished: epoch.Add(time.Second)},
		{ID: 5, Kind: tgr.WorkJob, Key: "deploy", Status: tgr.Completed, Conclusion: tgr.Skipped, Reason: "its needs failed"},
	}
	return run, jobs
}

func options() ReportOptions {
	return ReportOptions{
		URL: func(run tgr.RunID, job tgr.JobID) string {
			if job == 0 {
				return "https://ci.example/runs/" + run.String()
			}
			return "https://ci.example/runs/" + run.String() + "/jobs/" + job.String()
		},
		Lines: func(j tgr.Job) []string {
			return []string{"--- FAIL: TestX", "", "</pre><script>alert(1)</script> @ada", hostile, strings.Repeat("x", 1000)}
		},
		Now: func() time.Time { return epoch.Add(time.Hour) },
	}
}

// byKey decodes all reports of a kind.
func byKey[T any](t *testing.T, out []Outgoing, kind string) map[string]T {
	t.Helper()
	all := map[string]T{}
	for _, o := range out {
		if !strings.HasPrefix(o.Key, kind+"/") {
			continue
		}
		var v T
		if err := json.Unmarshal(o.Body, &v); err != nil {
			t.Fatal(err)
		}
		if _, ok := all[o.Key]; ok {
			t.Errorf("two reports of key %s", o.Key)
		}
		all[o.Key] = v
	}
	return all
}

func TestReportsOfJobs(t *testing.T) {
	run, jobs := testRun()
	out := Reports(run, jobs, options())
	statuses := byKey[StatusReport](t, out, KindStatus)
	checks := byKey[CheckReport](t, out, KindCheck)
	if len(statuses) != 4 || len(checks) != 4 {
		t.Fatalf("%d statuses and %d check runs of 4 jobs", len(statuses), len(checks))
	}
	key := "status/7/" + shaA + "/CI / test (1.22) (pull_request)"
	want := StatusReport{Repo: "ada/engine", SHA: shaA, State: "failure", Context: "CI / test (1.22) (pull_request)", TargetURL: "https://ci.example/runs/12/jobs/3"}
	got := statuses[key]
	if !strings.HasPrefix(got.Description, "Failed after 1m 5s: <img") || utf8.RuneCountInString(got.Description) > 140 {
		t.Errorf("description %q", got.Description)
	}
	got.Description = ""
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for key, want := range map[string]string{"check/2": "success", "check/3": "failure", "check/4": "neutral", "check/5": "skipped"} {
		c := checks[key]
		if c.Status != "completed" || c.Conclusion != want || c.SHA != shaA || c.Title == "" || c.Summary == "" || (c.Completed.IsZero()) {
			t.Errorf("%s: %+v, want %s", key, c, want)
		}
	}
	if c := checks["check/3"]; len(c.Annotations) != 1 || !strings.Contains(c.Text, "--- FAIL: TestX") {
		t.Errorf("check run of the failed job: %+v", c)
	}
}

// No two jobs of a run share a name, because a commit status has nothing else.
func TestDistinctNames(t *testing.T) {
	long := strings.Repeat("x", 120)
	jobs := []tgr.Job{{Key: "a", Name: "test"}, {Key: "b", Name: "test"}, {Key: "c"}, {Key: "d", Name: long, Index: 0}, {Key: "d", Name: long + "y", Index: 1}}
	want := []string{"test [a]", "test [b]", "c", long[:100] + "… #1", long[:100] + "… #2"}
	if diff := cmp.Diff(want, distinct(jobs)); diff != "" {
		t.Error(diff)
	}
}

func TestReportStates(t *testing.T) {
	for _, tt := range []struct {
		name                     string
		job                      tgr.Job
		state, check, conclusion string
		says                     string
	}{
		{"waiting for its needs", tgr.Job{Status: tgr.Pending, Reason: "needs build"}, "", "", "", ""},
		{"waiting for its group", tgr.Job{Status: tgr.Pending, Instance: []byte("{}"), Reason: "its turn will come"}, "pending", "queued", "", "Waiting: its turn will come"},
		{"queued", tgr.Job{Status: tgr.Queued}, "pending", "queued", "", "Queued"},
		{"running", tgr.Job{Status: tgr.InProgress, Started: epoch}, "pending", "in_progress", "", "In progress"},
		{"success", tgr.Job{Status: tgr.Completed, Conclusion: tgr.Success, Started: epoch, Finished: epoch.Add(2 * time.Hour)}, "success", "completed", "success", "Successful in 2h 0m"},
		{"skipped", tgr.Job{Status: tgr.Completed, Conclusion: tgr.Skipped}, "success", "completed", "skipped", "Skipped"},
		{"cancelled", tgr.Job{Status: tgr.Completed, Conclusion: tgr.Cancelled, Reason: "by ada"}, "error", "completed", "cancelled", "Cancelled: by ada"},
		{"cancelled and may fail", tgr.Job{Status: tgr.Completed, Conclusion: tgr.Cancelled, ContinueOnError: true}, "error", "completed", "cancelled", "Cancelled"},
		{"timed out", tgr.Job{Status: tgr.Completed, Conclusion: tgr.TimedOut}, "failure", "completed", "timed_out", "Timed out"},
		{"our fault", tgr.Job{Status: tgr.Completed, Conclusion: tgr.Failure, Blame: tgr.BlameOurs, Reason: "no machine"}, "error", "completed", "failure", "Not the job's fault: the runner failed: no machine"},
		{"no conclusion", tgr.Job{Status: tgr.Completed}, "failure", "completed", "failure", "Failed"},
		{"unknown conclusion", tgr.Job{Status: tgr.Completed, Conclusion: "exploded"}, "failure", "completed", "failure", "Failed"},
		{"may fail", tgr.Job{Status: tgr.Completed, Conclusion: tgr.Failure, ContinueOnError: true}, "success", "completed", "neutral", "Failed (may fail)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run, _ := testRun()
			tt.job.ID, tt.job.Kind, tt.job.Key = 8, tgr.WorkJob, "j"
			out := Reports(run, []tgr.Job{tt.job}, ReportOptions{Now: func() time.Time { return epoch }})
			s := byKey[StatusReport](t, out, KindStatus)["status/7/"+shaA+"/CI / j (pull_request)"]
			c := byKey[CheckReport](t, out, KindCheck)["check/8"]
			if s.State != tt.state || s.Description != tt.says || c.Status != tt.check || c.Conclusion != tt.conclusion {
				t.Errorf("status %s %q, check run %s %s", s.State, s.Description, c.Status, c.Conclusion)
			}
		})
	}
}

func TestReportsOfBrokenWorkflow(t *testing.T) {
	run, _ := testRun()
	run.Event.Name, run.Event.Number = "push", 0
	run.WorkflowName, run.Conclusion = "", tgr.StartupFailure
	run.Reason = ".github/workflows/ci.yml:4:7: jobs.a has no steps"
	out := Reports(run, nil, options())
	c := byKey[CheckReport](t, out, KindCheck)["check/run/12/1"]
	s := byKey[StatusReport](t, out, KindStatus)["status/7/"+shaA+"/.github/workflows/ci.yml (push)"]
	if c.Conclusion != "failure" || !strings.Contains(c.Title, "has no steps") || s.State != "failure" || !strings.Contains(s.Description, "4:7") {
		t.Errorf("check run %+v, status %+v", c, s)
	}
	if len(c.Annotations) != 1 || c.Annotations[0].Line != 4 || c.Annotations[0].File != run.WorkflowFile {
		t.Errorf("annotations %+v", c.Annotations)
	}
	if len(out) != 2 {
		t.Errorf("%d reports, want a status and a check run", len(out))
	}
}

func TestReportsOfNothing(t *testing.T) {
	run, jobs := testRun()
	for name, change := range map[string]func(){
		"no commit":    func() { run.Event.SHA, run.Event.HeadSHA = "", "" },
		"deleted":      func() { run.Event.HeadSHA = strings.Repeat("0", 40) },
		"status event": func() { run.Event.Name = "status" },
		"check run":    func() { run.Event.Name = "check_run" },
		"not planned":  func() { jobs, run.Status, run.Conclusion = nil, tgr.Queued, "" },
		"nothing to do": func() {
			jobs, run.Status, run.Conclusion = nil, tgr.Completed, tgr.Skipped
		},
	} {
		run, jobs = testRun()
		change()
		if out := Reports(run, jobs, options()); len(out) != 0 {
			t.Errorf("%s: %d reports", name, len(out))
		}
	}
}

func TestCommentGolden(t *testing.T) {
	run, jobs := testRun()
	comments := byKey[CommentReport](t, Reports(run, jobs, options()), KindComment)
	c, ok := comments["comment/7/9/.github/workflows/ci.yml"]
	if !ok || len(comments) != 1 || c.Number != 9 || c.Run != 12 {
		t.Fatalf("%+v", comments)
	}
	got, _ := mergeComment("", c)
	golden := filepath.Join("testdata", "comment.md")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-update rewrites it)\n%s", diff)
	}
	outside := regexp.MustCompile(`(?s)<pre>.*?</pre>`).ReplaceAllString(got, "")
	for _, bad := range []string{"<img", "<script", "@ada", "#12 ", "**b**", "](http://evil", "\x1b", "\u202e", "\n# h"} {
		if strings.Contains(outside, bad) || strings.HasPrefix(bad, "<") && strings.Contains(got, bad) {
			t.Errorf("the comment holds %q", bad)
		}
	}
	if n := strings.Count(got, sectionEnd); n != 1 {
		t.Errorf("%d ends of sections", n)
	}
}

func TestMergeComment(t *testing.T) {
	report := func(file string, run int64, attempt int, body string) CommentReport {
		return CommentReport{Repo: "ada/engine", Number: 9, Section: file, Run: run, Attempt: attempt, Body: body}
	}
	c := ""
	var changed bool
	for _, step := range []struct {
		r       CommentReport
		changed bool
		want    []section
	}{
		{report("b c.yml", 1, 1, "one"), true, []section{{"b c.yml", 1, 1, "one"}}},
		{report("a.yml", 2, 1, "two\n\nlines"), true, []section{{"a.yml", 2, 1, "two\n\nlines"}, {"b c.yml", 1, 1, "one"}}},
		{report("b c.yml", 3, 1, "three"), true, []section{{"a.yml", 2, 1, "two\n\nlines"}, {"b c.yml", 3, 1, "three"}}},
		{report("b c.yml", 1, 2, "late"), false, []section{{"a.yml", 2, 1, "two\n\nlines"}, {"b c.yml", 3, 1, "three"}}},
		{report("b c.yml", 3, 1, "three"), false, []section{{"a.yml", 2, 1, "two\n\nlines"}, {"b c.yml", 3, 1, "three"}}},
		{report("b c.yml", 3, 2, "again"), true, []section{{"a.yml", 2, 1, "two\n\nlines"}, {"b c.yml", 3, 2, "again"}}},
	} {
		c, changed = mergeComment(strings.ReplaceAll(c, "\n", "\r\n"), step.r) // GitHub may give back other line ends
		c = strings.ReplaceAll(c, "\r\n", "\n")
		if changed != step.changed && !(step.r.Body == "three" && changed) {
			t.Errorf("%s: changed %v", step.r.Body, changed)
		}
		if diff := cmp.Diff(step.want, parseSections(c), cmp.AllowUnexported(section{})); diff != "" {
			t.Errorf("%s: %s", step.r.Body, diff)
		}
	}
	for i := range 50 { // far too much: the newest one is there in full, and nothing is longer than GitHub takes
		r := report(strings.Repeat("w", i+1)+".yml", int64(100+i), 1, "head\n"+strings.Repeat("é", 9_000))
		if c, _ = mergeComment(c, r); len(c) > 65_536 || !strings.Contains(c, r.Body) {
			t.Fatalf("workflow %d: %d bytes", i, len(c))
		}
	}
	if n := len(parseSections(c)); n != 52 {
		t.Errorf("%d sections, want all 52", n)
	}
	for i := range 900 { // absurdly many: still bounded
		if c, _ = mergeComment(c, report(strings.Repeat("v", i%50)+string(rune('a'+i/50))+".yml", int64(1000+i), 1, "x")); len(c) > 65_536 {
			t.Fatalf("workflow %d: %d bytes", i, len(c))
		}
	}
}

func TestReportsAreBounded(t *testing.T) {
	run, _ := testRun()
	long := strings.Repeat(hostile, 2000)
	run.WorkflowName, run.Reason = long, long
	var jobs []tgr.Job
	for i := range 300 {
		j := tgr.Job{ID: tgr.JobID(i + 2), Kind: tgr.WorkJob, Name: long, Status: tgr.Completed, Conclusion: tgr.Failure, Reason: long}
		for n := range 200 {
			j.Steps = append(j.Steps, tgr.Step{Number: n, Name: long, Status: tgr.Completed, Conclusion: tgr.Failure})
		}
		jobs = append(jobs, j)
		if i > 20 {
			jobs[i].Steps = nil
		}
	}
	o := options()
	o.Lines = func(tgr.Job) []string { return []string{long, long} }
	out := Reports(run, jobs, o)
	for key, s := range byKey[StatusReport](t, out[:1], KindStatus) {
		if utf8.RuneCountInString(s.Description) > 140 || len(s.Context) > 255 || len(key) > 400 {
			t.Errorf("status %d characters, context of %d bytes", utf8.RuneCountInString(s.Description), len(s.Context))
		}
	}
	for _, o := range out {
		if len(o.Body) > 200<<10 {
			t.Errorf("%s: %d bytes", clip(o.Key, 40), len(o.Body))
		}
		if strings.HasPrefix(o.Key, KindComment) {
			var c CommentReport
			if err := json.Unmarshal(o.Body, &c); err != nil || len(c.Body) > 60_000 {
				t.Errorf("comment of %d bytes, %v", len(c.Body), err)
			}
		}
	}
}

// FuzzEscape checks that nothing of what Markdown or HTML acts upon is left.
func FuzzEscape(f *testing.F) {
	f.Add(hostile)
	f.Add("\x1b]0;title\x07 www.evil.example gh-1 https://x\ufeff\u200b")
	f.Fuzz(func(t *testing.T, s string) {
		got := escape(s)
		if strings.ContainsAny(got, "<>\n\r\x1b`*_[]|~\\$") || !utf8.ValidString(got) {
			t.Errorf("escape(%q) = %q", s, got)
		}
		for i, r := range got {
			if r == '@' && !strings.HasPrefix(got[i+1:], "\u200b") {
				t.Errorf("a mention in %q", got)
			}
		}
		if strings.Contains(plain(s), "\x1b") {
			t.Errorf("plain(%q) = %q", s, plain(s))
		}
	})
}

// FuzzParseSections checks that a comment of somebody else's making neither panics nor grows.
func FuzzParseSections(f *testing.F) {
	c, _ := mergeComment("", CommentReport{Section: "a", Run: 1, Attempt: 1, Body: "x"})
	f.Add(c)
	f.Add("<!-- tgr:begin file=%zz run=1 attempt=1 -->\n<!-- tgr:end -->")
	f.Fuzz(func(t *testing.T, comment string) {
		merged, _ := mergeComment(comment, CommentReport{Section: "a", Run: 1 << 62, Attempt: 1, Body: "x"})
		if len(merged) > 65_536 && merged != comment {
			t.Errorf("%d bytes", len(merged))
		}
		found := false
		for _, s := range parseSections(merged) {
			found = found || s.file == "a"
		}
		if !found {
			t.Errorf("the report is not in %q", merged)
		}
	})
}

// Why a job failed is in the comment, as text whatever is in it.
func TestCommentSaysWhy(t *testing.T) {
	run, jobs := testRun()
	o := options()
	o.Why = func(tgr.Job) string {
		return "Likely cause, line 3: undefined: x\n\nmodel thinks: [see](https://evil.example) @ada ![](x) <img src=x>"
	}
	body := byKey[CommentReport](t, Reports(run, jobs, o), KindComment)["comment/7/9/.github/workflows/ci.yml"].Body
	if !strings.Contains(body, "Likely cause, line 3: undefined: x\n\n") {
		t.Errorf("the cause is not in\n%s", body)
	}
	for _, bad := range []string{"](https://evil", "@ada ", "<img", "![]("} {
		if strings.Contains(body, bad) {
			t.Errorf("%q is in\n%s", bad, body)
		}
	}
}

// What was learnt is said once, below the table, as text, and only when the run has ended.
func TestCommentHints(t *testing.T) {
	run, jobs := testRun()
	o := options()
	o.Hint = func(r tgr.Run, js []tgr.Job) string {
		if r.ID != run.ID || len(js) == 0 {
			t.Errorf("asked about run %d with %d jobs", r.ID, len(js))
		}
		return "The step is flaky [see](https://evil.example) @ada"
	}
	body := func() string {
		return byKey[CommentReport](t, Reports(run, jobs, o), KindComment)["comment/7/9/.github/workflows/ci.yml"].Body
	}
	run.Status, run.Conclusion = tgr.Completed, tgr.Failure
	if got := body(); strings.Count(got, "The step is flaky") != 1 || strings.Contains(got, "](https://evil") || strings.Contains(got, "@ada") && !strings.Contains(got, "@\u200b") && strings.Contains(got, " @ada") {
		t.Errorf("the comment is\n%s", got)
	}
	run.Status, run.Conclusion = tgr.InProgress, ""
	if got := body(); strings.Contains(got, "flaky") {
		t.Errorf("said while the run goes on:\n%s", got)
	}
}
