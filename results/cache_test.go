package results

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// TestCacheLookup: exact before prefix, the first key before the others, the newest of several.
func TestCacheLookup(t *testing.T) {
	now := newClock()
	c := began(t, opened(t, Config{Now: now.Now}), jobOn(1, "main"))
	for _, key := range []string{"go-a", "go-b", "node-1", "go-b-long", "100%_x"} {
		c.want(200, c.save(key, []byte("bytes of "+key)))
		now.add(time.Second)
	}
	for _, tt := range []struct {
		keys []string
		want string
	}{
		{[]string{"go-a"}, "go-a"},
		{[]string{"go-"}, "go-b-long"},
		{[]string{"go-b"}, "go-b"},
		{[]string{"none", "node-", "go-"}, "node-1"},
		{[]string{"go-zzz", "go-a"}, "go-a"},
		{[]string{"GO-A"}, ""},
		{[]string{"%"}, ""},
		{[]string{"100%_"}, "100%_x"},
		{[]string{"o-a"}, ""},
	} {
		got, data := c.restore(tt.keys...)
		if got != tt.want || got != "" && string(data) != "bytes of "+got {
			t.Errorf("restore %q: %q with %q, want %q", tt.keys, got, data, tt.want)
		}
	}
	r := c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "go-a", "version": "another"})
	if r.status != 200 || r.field("ok") != "false" {
		t.Errorf("another version: %s, want a miss", r)
	}
}

// TestCacheScopes: who reads what whom wrote. Rows write, columns read.
func TestCacheScopes(t *testing.T) {
	other := jobOn(6, "main")
	other.Run.Event.Repo.ID = 8
	target := pullOn(8, 2, true) // runs for the base's branch, whoever caused it
	target.Run.Event.Name, target.Run.Event.Ref = "pull_request_target", "refs/heads/main"
	after := jobOn(9, "main") // anybody's pull request may have caused it
	after.Run.Event.Name = "workflow_run"
	jobs := []struct {
		name string
		job  Job
	}{
		{"main", jobOn(1, "main")}, {"topic", jobOn(2, "topic")},
		{"pull 1", pullOn(3, 1, false)}, {"pull 2 of a fork", pullOn(4, 2, true)}, {"pull 3 of a fork", pullOn(5, 3, true)},
		{"another repository", other}, {"pull_request_target", target}, {"workflow_run", after},
	}
	want := map[string]string{ // what a job that is named reads
		"main":                "main",
		"topic":               "main, topic",
		"pull 1":              "main, pull 1",
		"pull 2 of a fork":    "main, pull 2 of a fork",
		"pull 3 of a fork":    "main, pull 3 of a fork",
		"another repository":  "another repository",
		"pull_request_target": "main",
		"workflow_run":        "main",
	}
	s := opened(t, Config{})
	var clients []*client
	for _, j := range jobs {
		clients = append(clients, began(t, s, j.job))
	}
	for i, j := range jobs {
		r := clients[i].save("by "+j.name, []byte(j.name))
		if denied := strings.HasPrefix(r.field("message"), "cache write denied: "); r.status != 200 || denied != (j.name == "pull_request_target" || j.name == "workflow_run") {
			t.Errorf("%s saves: %s", j.name, r)
		}
	}
	for i, reader := range jobs {
		var got []string
		for _, writer := range jobs {
			if key, _ := clients[i].restore("by " + writer.name); key != "" {
				got = append(got, writer.name)
			}
		}
		if diff := cmp.Diff(want[reader.name], strings.Join(got, ", ")); diff != "" {
			t.Errorf("%s reads (-want +got):\n%s", reader.name, diff)
		}
	}
}

// A stranger's file under a key that a trusted run of the same ref looks for first is not what that run gets.
func TestCachePoisoning(t *testing.T) {
	s := opened(t, Config{})
	stranger, own := began(t, s, pullOn(1, 9, true)), began(t, s, pullOn(2, 9, false))
	stranger.want(200, stranger.save("deps", []byte("evil")))
	if key, data := own.restore("deps"); key != "" {
		t.Errorf("a trusted run restored %q from a fork's run", data)
	}
	own.want(200, own.save("deps", []byte("good")))
	if _, data := own.restore("deps"); string(data) != "good" {
		t.Errorf("restored %q", data)
	}
	if _, data := stranger.restore("deps"); string(data) != "evil" {
		t.Errorf("the fork's run restored %q, and its own was there", data)
	}
}

// What Dependabot proposes is a stranger's, though it is no fork's: no run that somebody else causes for its pull request,
// or its branch, restores a cache of it, and it reads what it has left itself.
func TestCacheDependabot(t *testing.T) {
	s := opened(t, Config{})
	bot := func(j Job) Job {
		j = reading(j, "http://github.invalid")
		j.Runs.Own = true
		return j
	}
	for i, tt := range []struct{ bot, again, own Job }{
		{bot(pullOn(1, 9, false)), bot(pullOn(2, 9, false)), pullOn(3, 9, false)},
		{bot(jobOn(11, "dependabot/npm/x")), bot(jobOn(12, "dependabot/npm/x")), jobOn(13, "dependabot/npm/x")},
	} {
		a, again, own := began(t, s, tt.bot), began(t, s, tt.again), began(t, s, tt.own)
		a.want(200, a.save("deps", []byte("proposed")))
		a.want(200, a.upload("left", "proposed"))
		if key, data := own.restore("deps"); key != "" {
			t.Errorf("%d: a trusted run restored %q", i, data)
		}
		if key, _ := again.restore("deps"); key != "deps" {
			t.Errorf("%d: the next one does not find its cache", i)
		}
		if names, _, _ := again.page(fmt.Sprintf("/repos/o/r/actions/runs/%d/artifacts", tt.bot.Run.ID)); len(names) != 1 {
			t.Errorf("%d: the next one finds the artifacts %v", i, names)
		}
	}
}

// A job that wants to save what another one is saving is told so at once, for as long as that one may.
func TestCacheReserved(t *testing.T) {
	now := newClock()
	s := opened(t, Config{Now: now.Now})
	a, b, c := began(t, s, jobOn(1, "main")), began(t, s, jobOn(2, "main")), began(t, s, jobOn(3, "topic"))
	ask := func(c *client) response {
		return c.cache("CreateCacheEntry", map[string]any{"key": "k", "version": version})
	}
	a.want(200, ask(a))
	a.want(200, ask(a)) // tries again
	if r := b.want(409, ask(b)); r.field("code") != "already_exists" {
		t.Errorf("the second to reserve: %s", r)
	}
	c.want(200, ask(c)) // in another scope
	b.want(200, b.cache("CreateCacheEntry", map[string]any{"key": "k", "version": "other"}))
	now.add(urlsFor + time.Second) // it has sent nothing, and cannot any more
	b.want(200, ask(b))
	a.want(409, ask(a))
	b.x.halt() // as it is when a server ends
	a.want(200, ask(a))
}

// A key that is taken stays as it is; of two that upload it at once, on servers of their own, one wins.
func TestCacheImmutable(t *testing.T) {
	s := opened(t, Config{})
	a, b := began(t, s, jobOn(1, "main")), began(t, opened(t, Config{Dir: s.cfg.Dir}), jobOn(2, "main"))
	urlA := a.want(200, a.cache("CreateCacheEntry", map[string]any{"key": "k", "version": version})).field("signed_upload_url")
	urlB := b.want(200, b.cache("CreateCacheEntry", map[string]any{"key": "k", "version": version})).field("signed_upload_url")
	a.want(201, a.do("PUT", urlA, strings.NewReader("aaa"), "x-ms-blob-type", "BlockBlob"))
	b.want(201, b.do("PUT", urlB, strings.NewReader("bbb"), "x-ms-blob-type", "BlockBlob"))
	finalize := map[string]any{"key": "k", "version": version, "size_bytes": "3"}
	id := b.want(200, b.cache("FinalizeCacheEntryUpload", finalize)).field("entry_id")
	if again := b.want(200, b.cache("FinalizeCacheEntryUpload", finalize)).field("entry_id"); again != id {
		t.Errorf("finalized again it is entry %s, and was %s", again, id)
	}
	if r := a.want(409, a.cache("FinalizeCacheEntryUpload", finalize)); r.field("code") != "already_exists" || r.field("msg") == "" {
		t.Errorf("the second to finalize: %s", r)
	}
	a.want(409, a.cache("CreateCacheEntry", map[string]any{"key": "k", "version": version}))
	b.want(409, b.do("PUT", urlB, strings.NewReader("xxx"), "x-ms-blob-type", "BlockBlob"))
	if _, data := a.restore("k"); string(data) != "bbb" {
		t.Errorf("restored %q, want what was finalized first", data)
	}
}

// TestCacheRefused: names and sizes that no cache may have.
func TestCacheRefused(t *testing.T) {
	c := began(t, opened(t, Config{}), jobOn(1, "main"))
	for _, key := range []string{"", "a,b", "nul\x00", "line\nbreak", strings.Repeat("x", 513), strings.Repeat("x", 10_000), "\x7f"} {
		c.want(400, c.cache("CreateCacheEntry", map[string]any{"key": key, "version": version}))
		c.want(400, c.cache("FinalizeCacheEntryUpload", map[string]any{"key": key, "version": version, "size_bytes": "1"}))
		c.want(400, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": key, "version": version}))
	}
	for _, v := range []string{"", strings.Repeat("v", 257), "a\x00"} {
		c.want(400, c.cache("CreateCacheEntry", map[string]any{"key": "k", "version": v}))
	}
	keys := make([]string, maxKeys)
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
	}
	c.want(400, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "k", "restore_keys": keys, "version": version}))
	c.want(200, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "k", "restore_keys": keys[1:], "version": version}))
	for _, key := range []string{"../../etc/passwd", "/etc/passwd", `C:\x`, strings.Repeat("ü", 512), "a b", "日本"} { // keys are data, never paths
		c.want(200, c.save(key, []byte(key)))
		if got, data := c.restore(key); got != key || string(data) != key {
			t.Errorf("%q came back as %q with %q", key, got, data)
		}
	}
	c.want(400, c.cache("FinalizeCacheEntryUpload", map[string]any{"key": "never begun", "version": version, "size_bytes": "1"}))
	c.want(200, c.cache("CreateCacheEntry", map[string]any{"key": "nothing sent", "version": version}))
	c.want(400, c.cache("FinalizeCacheEntryUpload", map[string]any{"key": "nothing sent", "version": version, "size_bytes": "0"}))
	url := c.want(200, c.cache("CreateCacheEntry", map[string]any{"key": "other size", "version": version})).field("signed_upload_url")
	c.want(201, c.do("PUT", url, strings.NewReader("four"), "x-ms-blob-type", "BlockBlob"))
	c.want(400, c.cache("FinalizeCacheEntryUpload", map[string]any{"key": "other size", "version": version, "size_bytes": "5"}))
	if got, _ := c.restore("other size"); got != "" {
		t.Error("a cache of another size than announced can be restored")
	}
}

// TestCacheMode: a job that says what it does with caches is held to it.
func TestCacheMode(t *testing.T) {
	s := opened(t, Config{})
	seed := began(t, s, jobOn(1, "main"))
	seed.want(200, seed.save("seed", []byte("x")))
	for i, tt := range []struct {
		mode        string
		read, write bool
	}{{"", true, true}, {"read", true, false}, {"write", true, true}, {"write-only", false, true}, {"none", false, false}} {
		j := jobOn(tgr.JobID(10+i), "main")
		j.CacheMode = tt.mode
		c := began(t, s, j)
		r := c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "seed", "version": version})
		if read := r.status == 200 && r.field("ok") == "true"; read != tt.read || !read && !strings.HasPrefix(r.field("msg"), "cache read denied: ") {
			t.Errorf("cache-mode %q reads: %s", tt.mode, r)
		}
		r = c.cache("CreateCacheEntry", map[string]any{"key": "by " + tt.mode, "version": version})
		if write := r.field("ok") == "true"; write != tt.write || !write && !strings.HasPrefix(r.field("message"), "cache write denied: ") {
			t.Errorf("cache-mode %q writes: %s", tt.mode, r)
		}
		if c.env["ACTIONS_CACHE_MODE"] != tt.mode {
			t.Errorf("ACTIONS_CACHE_MODE is %q, want %q", c.env["ACTIONS_CACHE_MODE"], tt.mode)
		}
	}
	bad := jobOn(20, "main")
	bad.CacheMode = "rw"
	if _, err := s.Begin(t.Context(), bad); tgr.CodeOf(err) != tgr.Workflow {
		t.Errorf("cache-mode rw: %v, want the workflow's fault", err)
	}
}

// files counts the files below a folder.
func files(t testing.TB, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return n
}

// keys lists what caches there are.
func keys(t testing.TB, s *Service) string {
	t.Helper()
	list, err := s.Caches(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list {
		names = append(names, c.Key)
	}
	return strings.Join(names, " ")
}

// TestCacheEviction: the least recently used go, the bytes with them, and strangers evict nothing but strangers.
func TestCacheEviction(t *testing.T) {
	now := newClock()
	s := opened(t, Config{Now: now.Now, Limits: Limits{CacheBytes: 4000}})
	c, fork := began(t, s, jobOn(1, "main")), began(t, s, pullOn(2, 5, true))
	kb := func(b byte) []byte { return bytes.Repeat([]byte{b}, 1000) }
	tick := func() { now.add(2 * time.Minute) }
	for _, k := range []string{"a", "b", "c"} {
		c.want(200, c.save(k, kb(k[0])))
		tick()
	}
	c.restore("a") // is used again
	tick()
	fork.want(200, fork.save("f1", kb('1')))
	tick()
	if got := keys(t, s); got != "f1 a c b" {
		t.Errorf("there are %s", got)
	}
	fork.want(200, fork.save("f2", kb('2'))) // strangers have a quarter
	tick()
	if got := keys(t, s); got != "f2 a c b" {
		t.Errorf("after a stranger's second there are %s", got)
	}
	c.want(200, c.save("d", kb('d'))) // drives out the stranger's
	tick()
	if got := keys(t, s); got != "d a c b" {
		t.Errorf("there are %s", got)
	}
	c.want(200, c.save("e", kb('e')))
	if got := keys(t, s); got != "e d a c" {
		t.Errorf("there are %s", got)
	}
	if n := files(t, filepath.Join(s.cfg.Dir, "blobs")); n != 4 {
		t.Errorf("%d files are left, want 4", n)
	}
	if err := s.RemoveCaches(t.Context(), 12345); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("remove what is not there: %v", err)
	}
	list, err := s.Caches(t.Context(), "O/R")
	if err != nil || len(list) != 4 {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := s.RemoveCaches(t.Context(), list[0].ID, list[1].ID); err != nil {
		t.Error(err)
	}
	if got := keys(t, s); got != "a c" {
		t.Errorf("after removal there are %s", got)
	}
}

// A cache that is larger than what its writer may have at all is refused, and drives out nothing.
func TestCacheTooLarge(t *testing.T) {
	s := opened(t, Config{Limits: Limits{CacheBytes: 4000}})
	c, fork := began(t, s, jobOn(1, "main")), began(t, s, pullOn(2, 5, true))
	c.want(200, c.save("of main", make([]byte, 2000)))
	fork.want(413, fork.save("of a stranger", make([]byte, 1001)))
	c.want(413, c.save("of anybody", make([]byte, 4001)))
	addr := fork.create("in blocks")
	fork.want(201, fork.block(addr, 0, strings.Repeat("x", 600)))
	fork.want(413, fork.block(addr, 1, strings.Repeat("x", 600)))
	r := fork.do("POST", fork.base+"/_apis/artifactcache/caches", strings.NewReader(`{"key":"v1","version":"v","cacheSize":1001}`),
		"Authorization", "Bearer "+fork.env["ACTIONS_RUNTIME_TOKEN"], "Content-Type", "application/json")
	fork.want(400, r)
	if got := keys(t, s); got != "of main" {
		t.Errorf("there are %s", got)
	}
	c.want(200, c.upload("artifact", strings.Repeat("x", 5000))) // has limits of its own
}

// Equal bytes are kept once, and stay until the last that has them goes.
func TestCacheSharedBytes(t *testing.T) {
	s := opened(t, Config{})
	c := began(t, s, jobOn(1, "main"))
	for _, k := range []string{"a", "b"} {
		c.want(200, c.save(k, []byte("the same")))
	}
	if n := files(t, filepath.Join(s.cfg.Dir, "blobs")); n != 1 {
		t.Errorf("%d files, want 1", n)
	}
	list, err := s.Caches(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveCaches(t.Context(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	if key, data := c.restore(list[1].Key); key == "" || string(data) != "the same" {
		t.Errorf("the other one is %q %q", key, data)
	}
	if err := s.RemoveCaches(t.Context(), list[1].ID); err != nil {
		t.Fatal(err)
	}
	if n := files(t, filepath.Join(s.cfg.Dir, "blobs")); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// A cache whose bytes a crash, or a person, has taken is a miss and can be saved again.
func TestCacheLostBytes(t *testing.T) {
	s := opened(t, Config{})
	c := began(t, s, jobOn(1, "main"))
	c.want(200, c.save("k", []byte("will be lost")))
	for _, damage := range []func(string) error{os.Remove, func(f string) error { return os.Truncate(f, 3) }} {
		found, err := filepath.Glob(filepath.Join(s.cfg.Dir, "blobs/*/*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%v, %v", found, err)
		}
		if err := damage(found[0]); err != nil {
			t.Fatal(err)
		}
		if key, _ := c.restore("k"); key != "" {
			t.Error("a cache without its bytes was found")
		}
		c.want(200, c.save("k", []byte("will be lost")))
		if key, data := c.restore("k"); key != "k" || string(data) != "will be lost" {
			t.Errorf("saved again it is %q %q", key, data)
		}
	}
}

// A cache that has lost its bytes hides no older one that begins with the same key.
func TestCacheLostNewest(t *testing.T) {
	now := newClock()
	s := opened(t, Config{Now: now.Now})
	c := began(t, s, jobOn(1, "main"))
	c.want(200, c.save("go-1", []byte("old")))
	before, err := filepath.Glob(filepath.Join(s.cfg.Dir, "blobs/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"go-2", "go-3"} {
		now.add(time.Second)
		c.want(200, c.save(key, []byte("new "+key)))
	}
	all, err := filepath.Glob(filepath.Join(s.cfg.Dir, "blobs/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if !slices.Contains(before, path) {
			os.Remove(path)
		}
	}
	for _, keys := range [][]string{{"go-4", "go-"}, {"go-3", "go-"}} {
		if key, data := c.restore(keys...); key != "go-1" || string(data) != "old" {
			t.Errorf("restore %q: %q with %q", keys, key, data)
		}
	}
}

// TestCacheV1 speaks the first protocol by hand where the client of wire-traces does not go.
func TestCacheV1(t *testing.T) {
	s := opened(t, Config{Limits: Limits{BlobBytes: 1 << 20}})
	c, other := began(t, s, jobOn(1, "main")), began(t, s, jobOn(2, "main"))
	auth := []string{"Authorization", "Bearer " + c.env["ACTIONS_RUNTIME_TOKEN"], "Content-Type", "application/json"}
	api := c.env["ACTIONS_CACHE_URL"] + "_apis/artifactcache/"
	reserve := func(body string) response { return c.do("POST", api+"caches", strings.NewReader(body), auth...) }
	id := c.want(201, reserve(`{"key":"k","version":"v","cacheSize":10}`)).field("cacheId")
	patch := func(span, data string) response {
		// A reader of unknown length makes the client send it chunked, as GitHub's does.
		return c.do("PATCH", api+"caches/"+id, struct{ *strings.Reader }{strings.NewReader(data)}, append(auth, "Content-Range", span)...)
	}
	c.want(204, patch("bytes 5-9/*", "56789"))
	c.want(400, patch("bytes 0-4/*", "0123"))
	c.want(400, patch("bytes 0-3/*", "01234"))
	for _, bad := range []string{"", "bytes */10", "bytes 4-0/*", "bytes -1-2/*", "items 0-4/*", "bytes 0-4", "bytes 0-99999999999999999999/*"} {
		c.want(400, patch(bad, "01234"))
	}
	c.want(413, patch("bytes 0-99999999/*", "01234"))
	commit := func(n int) response {
		return c.do("POST", api+"caches/"+id, strings.NewReader(fmt.Sprintf(`{"size":%d}`, n)), auth...)
	}
	c.want(400, commit(10)) // a gap at the beginning
	c.want(204, patch("bytes 0-4/*", "xxxxx"))
	c.want(204, patch("bytes 0-4/*", "01234")) // a retry replaces
	c.want(400, commit(11))
	c.want(204, commit(10))
	c.want(204, commit(10))
	c.want(409, patch("bytes 0-4/*", "01234"))
	c.want(409, reserve(`{"key":"k","version":"v"}`))
	c.want(400, reserve(`{"key":"huge","version":"v","cacheSize":99999999}`))
	c.want(400, reserve(`[1]`))
	hit := c.want(200, c.do("GET", api+"cache?keys=none%2Ck&version=v", nil, auth...))
	if data := c.want(200, c.do("GET", hit.field("archiveLocation"), nil)).body; string(data) != "0123456789" || hit.field("scope") != "refs/heads/main" {
		t.Errorf("%s: %q", hit, data)
	}
	if r := c.want(200, c.do("GET", api+"caches?key=k", nil, auth...)); r.field("totalCount") != "1" {
		t.Errorf("list: %s", r)
	}
	mine := c.want(201, reserve(`{"key":"mine","version":"v"}`)).field("cacheId")
	theirs := []string{"Authorization", "Bearer " + other.env["ACTIONS_RUNTIME_TOKEN"], "Content-Type", "application/json"}
	r := other.do("PATCH", other.base+"/_apis/artifactcache/caches/"+mine, strings.NewReader("x"), append(theirs, "Content-Range", "bytes 0-0/*")...)
	other.want(404, r)
	other.want(404, other.do("POST", other.base+"/_apis/artifactcache/caches/"+mine, strings.NewReader(`{"size":1}`), theirs...))
	c.want(404, c.do("POST", api+"caches/0", strings.NewReader(`{"size":1}`), auth...))
	fork := began(t, s, Job{ID: 9, Lease: "l", CacheMode: "read", Run: jobOn(9, "main").Run})
	r = fork.do("POST", fork.base+"/_apis/artifactcache/caches", strings.NewReader(`{"key":"z","version":"v"}`),
		"Authorization", "Bearer "+fork.env["ACTIONS_RUNTIME_TOKEN"])
	if fork.want(403, r); !strings.HasPrefix(r.field("message"), "cache write denied: ") {
		t.Errorf("a read-only job reserves: %s", r)
	}
}

// A thousand requests at once are all answered.
func TestCacheThousand(t *testing.T) {
	s := opened(t, Config{})
	var clients []*client
	for i := range 4 {
		clients = append(clients, began(t, s, jobOn(tgr.JobID(i+1), "main")))
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1000}
	defer transport.CloseIdleConnections()
	http.DefaultClient.Transport = transport
	defer func() { http.DefaultClient.Transport = nil }()
	begin := time.Now()
	var calls sync.WaitGroup
	for i := range 1000 {
		calls.Go(func() {
			c, key := clients[i%4], fmt.Sprint("key-", i/2%100)
			if i%2 == 0 {
				if r := c.save(fmt.Sprint("key-", i), []byte(key)); r.status != 200 {
					t.Errorf("save %d: %s", i, r)
				}
				return
			}
			r := c.cache("GetCacheEntryDownloadURL", map[string]any{"key": key, "restore_keys": []string{"key-"}, "version": version})
			if r.status != 200 {
				t.Errorf("look up %d: %s", i, r)
			}
		})
	}
	calls.Wait()
	list, err := s.Caches(context.Background(), "o/r")
	if err != nil || len(list) != 500 {
		t.Errorf("%d caches were saved, want 500: %v", len(list), err)
	}
	t.Logf("2,000 requests from 1,000 clients in %v", time.Since(begin))
}
