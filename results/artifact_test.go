package results

import (
	"crypto/sha256"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// attemptOf is a job of an attempt of run 100.
func attemptOf(id tgr.JobID, attempt int) Job {
	j := jobOn(id, "main")
	j.Run.ID, j.Run.Attempt = 100, attempt
	return j
}

// names lists the artifacts that a job sees, with their contents.
func (c *client) names() string {
	c.t.Helper()
	r := c.want(200, c.artifact("ListArtifacts", nil))
	var reply struct {
		Artifacts []struct{ Name string }
	}
	if err := decodeInto(r.body, &reply); err != nil {
		c.t.Fatal(err)
	}
	var list []string
	for _, a := range reply.Artifacts {
		url := c.want(200, c.artifact("GetSignedArtifactURL", map[string]any{"name": a.Name})).field("signed_url")
		list = append(list, a.Name+"="+string(c.want(200, c.do("GET", url, nil)).body))
	}
	return strings.Join(list, " ")
}

// Jobs of a run see what the others made, a later attempt sees what earlier ones made and not the reverse.
func TestArtifactAttempts(t *testing.T) {
	s := opened(t, Config{})
	a, b, later, other := began(t, s, attemptOf(1, 1)), began(t, s, attemptOf(2, 1)), began(t, s, attemptOf(3, 2)), began(t, s, jobOn(4, "main"))
	a.want(200, a.upload("x", "of a"))
	b.want(200, b.upload("y", "of ", "b"))
	if r := b.want(409, b.upload("x", "of b")); r.field("code") != "already_exists" {
		t.Errorf("the same name again: %s", r)
	}
	later.want(200, later.upload("x", "of a, again"))
	for _, tt := range []struct {
		c    *client
		want string
	}{{a, "x=of a y=of b"}, {b, "x=of a y=of b"}, {later, "y=of b x=of a, again"}, {other, ""}} {
		if got := tt.c.names(); got != tt.want {
			t.Errorf("job %d sees %q, want %q", tt.c.x.job.ID, got, tt.want)
		}
	}
	later.want(404, later.artifact("DeleteArtifact", map[string]any{"name": "y"})) // of an attempt that is over
	b.want(200, b.artifact("DeleteArtifact", map[string]any{"name": "x"}))         // overwrite: true
	b.want(200, b.upload("x", "of b"))
	if got := a.names(); got != "y=of b x=of b" {
		t.Errorf("after it was overwritten there are %q", got)
	}
	r := a.want(200, a.artifact("ListArtifacts", map[string]any{"name_filter": "y"}))
	id := strings.Split(string(r.body), `"database_id":"`)[1]
	id = id[:strings.IndexByte(id, '"')]
	if r := a.want(200, a.artifact("ListArtifacts", map[string]any{"id_filter": id})); strings.Count(string(r.body), "database_id") != 1 {
		t.Errorf("by id %s: %s", id, r)
	}
	list, err := s.Artifacts(t.Context(), 100)
	if err != nil || len(list) != 3 {
		t.Errorf("%d artifacts of the run, want 3: %v", len(list), err)
	}
}

// A job that is tried again, because a machine died under it, may upload what it has uploaded before; a job that goes on
// after a restart, and any other one, may not.
func TestArtifactTries(t *testing.T) {
	s := opened(t, Config{})
	first := began(t, s, attemptOf(1, 1))
	first.want(200, first.upload("x", "of the first try"))
	other := began(t, s, attemptOf(2, 1))
	other.want(200, other.upload("y", "of another job"))
	first.x.halt()
	resumed := began(t, s, attemptOf(1, 1))
	resumed.want(409, resumed.upload("x", "again"))
	if err := resumed.x.Close(); err != nil {
		t.Fatal(err)
	}
	again := attemptOf(1, 1)
	again.Lease = "another lease"
	second := began(t, s, again)
	second.want(409, second.upload("y", "not its own"))
	second.want(200, second.upload("x", "of the second try"))
	second.want(409, second.upload("x", "twice"))
	if got := other.names(); got != "y=of another job x=of the second try" {
		t.Errorf("there are %q", got)
	}
}

// A try that lost its job to another one takes nothing from it when it ends late.
func TestLateEnd(t *testing.T) {
	s := opened(t, Config{})
	late := began(t, s, attemptOf(1, 1))
	again := attemptOf(1, 1)
	again.Lease = "another lease"
	second := began(t, s, again)
	r := second.cache("CreateCacheEntry", map[string]any{"key": "k", "version": version})
	second.want(201, second.do("PUT", r.field("signed_upload_url"), strings.NewReader("data"), "x-ms-blob-type", "BlockBlob"))
	if err := late.x.Close(); err != nil {
		t.Fatal(err)
	}
	second.want(200, second.cache("FinalizeCacheEntryUpload", map[string]any{"key": "k", "version": version, "size_bytes": "4"}))
	if key, data := second.restore("k"); key != "k" || string(data) != "data" {
		t.Errorf("restored %q, %q", key, data)
	}
}

// A name that holds a secret is not stored, and not repeated to whoever asked.
func TestSecretInName(t *testing.T) {
	s := opened(t, Config{})
	j := jobOn(1, "main")
	j.Hides = func(name string) bool { return strings.Contains(name, "hunter2") }
	c := began(t, s, j)
	for what, r := range map[string]response{
		"name of this artifact": c.artifact("CreateArtifact", map[string]any{"name": "for-hunter2"}),
		"key of this cache":     c.cache("CreateCacheEntry", map[string]any{"key": "go-hunter2", "version": "v"}),
	} {
		c.want(400, r)
		if !strings.Contains(r.field("msg"), what+" holds a secret") || strings.Contains(string(r.body), "hunter2") {
			t.Errorf("the answer is %s", r)
		}
	}
	if list, err := s.Artifacts(t.Context(), 101); err != nil || len(list) != 0 {
		t.Errorf("the run has the artifacts %+v, %v", list, err)
	}
	if key, _ := c.restore("go-hunter2"); key != "" {
		t.Errorf("there is a cache %q", key)
	}
	c.want(200, c.upload("for-hunter", "3"))
	c.want(200, c.save("go-hunter", []byte("4")))
}

// TestArtifactRefused: names, ids, digests and sizes.
func TestArtifactRefused(t *testing.T) {
	now := newClock()
	s := opened(t, Config{Now: now.Now, Limits: Limits{Artifacts: 3, ArtifactBytes: 50}})
	c := began(t, s, jobOn(1, "main"))
	for _, name := range []string{"", ".", "..", "../x", "/etc/passwd", `C:\x`, `a\b`, "a/b", "nul\x00", "line\nbreak", strings.Repeat("x", 256),
		strings.Repeat("x", 10_000), "a:b", "a*", `"`, "<", "|", "?"} {
		c.want(400, c.artifact("CreateArtifact", map[string]any{"name": name}))
		c.want(400, c.artifact("FinalizeArtifact", map[string]any{"name": name, "size": "1"}))
	}
	for _, fields := range []map[string]any{
		{"workflow_run_backend_id": "101"}, {"workflow_run_backend_id": "102-1"}, {"workflow_job_run_backend_id": "2"}, {"workflow_job_run_backend_id": ""},
	} {
		fields["name"] = "x"
		for _, method := range []string{"CreateArtifact", "FinalizeArtifact", "ListArtifacts", "GetSignedArtifactURL", "DeleteArtifact"} {
			c.want(404, c.artifact(method, fields))
		}
	}
	for _, fields := range []map[string]any{
		{"expires_at": "tomorrow"}, {"expires_at": now.Now().Add(-time.Hour).Format(time.RFC3339)}, {"mime_type": "a b c"},
		{"mime_type": "text/" + strings.Repeat("x", 300)}, {"name": 7},
	} {
		if fields["name"] == nil {
			fields["name"] = "x"
		}
		c.want(400, c.artifact("CreateArtifact", fields))
	}
	c.want(404, c.artifact("GetSignedArtifactURL", map[string]any{"name": "none"}))
	c.want(404, c.artifact("DeleteArtifact", map[string]any{"name": "none"}))
	c.want(404, c.artifact("Unknown", nil))
	c.want(404, c.call("OtherService", "CreateArtifact", nil))

	url := c.want(200, c.artifact("CreateArtifact", map[string]any{"name": "d"})).field("signed_upload_url")
	c.want(201, c.block(url, 0, "four"))
	c.want(400, c.artifact("FinalizeArtifact", map[string]any{"name": "d", "size": "4"})) // the list has not come
	c.want(201, c.blockList(url, 0))
	c.want(400, c.artifact("FinalizeArtifact", map[string]any{"name": "d", "size": "5"}))
	c.want(400, c.artifact("FinalizeArtifact", map[string]any{"name": "d", "size": "4", "hash": "sha256:" + strings.Repeat("0", 64)}))
	if got := c.names(); got != "" {
		t.Errorf("an artifact that is not finished is seen: %s", got)
	}
	hash := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("four")))
	for range 2 { // the answer may be lost
		c.want(200, c.artifact("FinalizeArtifact", map[string]any{"name": "d", "size": "4", "hash": hash}))
	}
	c.want(413, c.upload("large", strings.Repeat("x", 47)))
	c.want(200, c.upload("e", "x"))
	c.want(200, c.upload("f", "x"))
	c.want(413, c.artifact("CreateArtifact", map[string]any{"name": "g"}))
}

// Two spellings of a name that look the same are one artifact's.
func TestArtifactTwins(t *testing.T) {
	const composed, decomposed = "caf\u00e9", "cafe\u0301"
	s := opened(t, Config{})
	a, b := began(t, s, attemptOf(1, 1)), began(t, s, attemptOf(2, 1))
	a.want(200, a.upload(decomposed, "first"))
	for _, name := range []string{composed, decomposed} {
		if r := b.want(409, b.upload(name, "second")); r.field("code") != "already_exists" {
			t.Errorf("%+q again: %s", name, r)
		}
		if r := b.want(200, b.artifact("ListArtifacts", map[string]any{"name_filter": name})); strings.Count(string(r.body), "database_id") != 1 {
			t.Errorf("%+q is listed as %s", name, r)
		}
		url := b.want(200, b.artifact("GetSignedArtifactURL", map[string]any{"name": name})).field("signed_url")
		b.want(200, b.do("GET", url, nil))
	}
	if got := b.names(); got != composed+"=first" {
		t.Errorf("there are %+q", got)
	}
	b.want(200, b.artifact("DeleteArtifact", map[string]any{"name": composed}))
	b.want(200, b.upload(composed, "second"))
	if got := a.names(); got != composed+"=second" {
		t.Errorf("after it was overwritten there are %+q", got)
	}
}

// TestArtifactExpiry: an artifact says when it ends, and ends with the retention at the latest.
func TestArtifactExpiry(t *testing.T) {
	now := newClock()
	s := opened(t, Config{Now: now.Now, Limits: Limits{Retention: 48 * time.Hour}})
	c := began(t, s, jobOn(1, "main"))
	for name, days := range map[string]int{"one": 1, "ten": 10} {
		url := c.want(200, c.artifact("CreateArtifact", map[string]any{"name": name, "mime_type": "text/plain",
			"expires_at": now.Now().Add(time.Duration(days) * 24 * time.Hour).Format(time.RFC3339Nano)})).field("signed_upload_url")
		c.want(201, c.block(url, 0, name))
		c.want(201, c.blockList(url, 0))
		c.want(200, c.artifact("FinalizeArtifact", map[string]any{"name": name, "size": "3"}))
	}
	now.add(25 * time.Hour)
	if got := c.names(); got != "ten=ten" {
		t.Errorf("after a day there are %q", got)
	}
	now.add(24 * time.Hour)
	if got := c.names(); got != "" {
		t.Errorf("after the retention there are %q", got)
	}
}

// Of two jobs that upload one name at once one wins, and what is seen is whole.
func TestArtifactRace(t *testing.T) {
	s := opened(t, Config{})
	var clients []*client
	for i := range 6 {
		clients = append(clients, began(t, s, attemptOf(tgr.JobID(i+1), 1)))
	}
	var wg sync.WaitGroup
	statuses := make([]int, len(clients))
	for i, c := range clients {
		wg.Go(func() {
			part := strings.Repeat(fmt.Sprint(i), 1000)
			statuses[i] = c.upload("same", part, part).status
		})
	}
	wg.Wait()
	won := 0
	for _, status := range statuses {
		switch status {
		case 200:
			won++
		case 409:
		default:
			t.Errorf("statuses %v", statuses)
		}
	}
	got := clients[0].names()
	if won != 1 || len(got) != len("same=")+2000 || strings.Trim(got[5:], got[5:6]) != "" {
		t.Errorf("%d won, and the artifact is %.80q…", won, got)
	}
}

// TestArtifactDownload is what people get: a download under its name, never a page.
func TestArtifactDownload(t *testing.T) {
	s := opened(t, Config{})
	c := began(t, s, jobOn(1, "main"))
	url := c.want(200, c.artifact("CreateArtifact", map[string]any{"name": "ünï code.html", "mime_type": "text/html"})).field("signed_upload_url")
	c.want(201, c.block(url, 0, "<script>alert(1)</script>"))
	c.want(201, c.blockList(url, 0))
	id := c.want(200, c.artifact("FinalizeArtifact", map[string]any{"name": "ünï code.html", "size": "25"})).field("artifact_id")
	list, err := s.Artifacts(t.Context(), 0)
	if err != nil || len(list) != 1 || fmt.Sprint(list[0].ID) != id || list[0].File() != "ünï code.html" {
		t.Fatalf("%+v, %v", list, err)
	}
	w := httptest.NewRecorder()
	if err := s.ServeArtifact(w, httptest.NewRequest("GET", "/", nil), list[0].ID); err != nil {
		t.Fatal(err)
	}
	h := w.Header()
	if w.Body.String() != "<script>alert(1)</script>" || h.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") ||
		h.Get("Content-Disposition") != `attachment; filename="_n_ code.html"; filename*=UTF-8''%C3%BCn%C3%AF%20code.html` {
		t.Errorf("headers %v, body %s", h, w.Body)
	}
	var b strings.Builder
	if err := s.CopyArtifact(t.Context(), &b, list[0].ID); err != nil || b.String() != w.Body.String() {
		t.Errorf("copied %q, %v", &b, err)
	}
	for _, err := range []error{s.CopyArtifact(t.Context(), &b, 999), s.ServeArtifact(w, httptest.NewRequest("GET", "/", nil), 999)} {
		if tgr.CodeOf(err) != tgr.NotFound {
			t.Errorf("artifact 999: %v", err)
		}
	}
}
