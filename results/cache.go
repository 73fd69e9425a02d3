package results

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/terraphim/tgr"
)

// Bounds of what names a cache; GitHub's.
const (
	maxKey     = 512 // characters
	maxKeys    = 10
	maxVersion = 256 // bytes; clients send the 64 digits of a SHA-256
)

// Messages of the cache service. The tags are the names on the wire.
type (
	createCache struct {
		Key     string `json:"key"`
		Version string `json:"version"`
	}
	createdCache struct {
		OK      bool   `json:"ok"`
		URL     string `json:"signed_upload_url"`
		Message string `json:"message,omitempty"`
	}
	finalizeCache struct {
		Key     string `json:"key"`
		Size    number `json:"size_bytes"`
		Version string `json:"version"`
	}
	finalizedCache struct {
		OK      bool   `json:"ok"`
		ID      number `json:"entry_id"`
		Message string `json:"message,omitempty"`
	}
	getCache struct {
		Key      string   `json:"key"`
		Restores []string `json:"restore_keys"`
		Version  string   `json:"version"`
	}
	gotCache struct {
		OK  bool   `json:"ok"`
		URL string `json:"signed_download_url,omitempty"`
		Key string `json:"matched_key,omitempty"`
	}
)

func (m *createCache) fields(f func(int, any)) { f(2, &m.Key); f(3, &m.Version) }
func (m *createdCache) fields(f func(int, any)) {
	f(1, &m.OK)
	f(2, &m.URL)
	f(3, &m.Message)
}
func (m *finalizeCache) fields(f func(int, any)) {
	f(2, &m.Key)
	f(3, &m.Size)
	f(4, &m.Version)
}
func (m *finalizedCache) fields(f func(int, any)) {
	f(1, &m.OK)
	f(2, &m.ID)
	f(3, &m.Message)
}
func (m *getCache) fields(f func(int, any)) {
	f(2, &m.Key)
	f(3, &m.Restores)
	f(4, &m.Version)
}
func (m *gotCache) fields(f func(int, any)) {
	f(1, &m.OK)
	f(2, &m.URL)
	f(3, &m.Key)
}

func (x *Session) createCache(r *http.Request, q *createCache) (any, error) {
	if x.access.denied != "" {
		return &createdCache{Message: denied(x.access.denied)}, nil // the client asks for ok, and shows the message
	}
	b, err := x.reserve(r.Context(), q.Key, q.Version)
	if err != nil {
		return nil, err
	}
	return &createdCache{OK: true, URL: x.address(r, b, toWrite)}, nil
}

func denied(why string) string { return "cache write denied: " + why }

// reserve begins the upload of a cache and returns its id. While a job uploads a key, others that want to are told so, as
// GitHub does: their clients take it for a word in passing, and a conflict at the end for a warning. One that died, or whose
// address has expired, is in nobody's way: then several upload the key, and the first that is complete wins.
func (x *Session) reserve(ctx context.Context, key, version string) (int64, error) {
	if err := checkCache(version, key); err != nil {
		return 0, err
	}
	return x.begin(ctx, blob{kind: cacheKind, scope: x.access.scopes[0].ref, name: key, version: version}, func(t *tx) error {
		b, err := one(t.ctx, t.tx, "WHERE kind = 'cache' AND state = 'done' AND repo = ? AND trusted = ? AND scope = ? AND version = ? AND name = ?",
			x.job.repo(), x.access.trusted, x.access.scopes[0].ref, version, key)
		if err != nil {
			return err
		}
		if b != nil {
			if ok, err := x.s.complete(ctx, b.id); err != nil || ok {
				return conflictOr(err)
			}
			if err := x.s.removeIn(t, b.id); err != nil {
				return err
			}
		}
		others, err := find(t.ctx, t.tx, `WHERE kind = 'cache' AND state <> 'done' AND repo = ? AND trusted = ? AND scope = ? AND version = ? AND name = ?
			AND job <> ? AND created > ?`, x.job.repo(), x.access.trusted, x.access.scopes[0].ref, version, key, x.job.ID, x.s.cfg.Now().Add(-urlsFor).UnixMicro())
		if err != nil {
			return err
		}
		served := x.s.served()
		if slices.ContainsFunc(others, func(b blob) bool { return served[b.job] }) {
			return conflictOr(nil)
		}
		return nil
	})
}

func conflictOr(err error) error {
	if err != nil {
		return err
	}
	return tgr.Errorf("results.cache", tgr.Conflict, "cache entry with the same key, version, and scope already exists")
}

// begin makes a blob of this job that is to be uploaded, if check, in the same transaction, has nothing against it.
func (x *Session) begin(ctx context.Context, b blob, check func(*tx) error) (id int64, err error) {
	if x.job.Hides != nil && x.job.Hides(b.name) {
		what := map[string]string{artifactKind: "name of this artifact", cacheKind: "key of this cache"}[b.kind]
		return 0, tgr.Errorf("results.name", tgr.Invalid, "the %s holds a secret of the job, and is shown to others: choose another", what)
	}
	now := x.s.cfg.Now()
	b.repo, b.repoName, b.trusted = x.job.repo(), x.job.Run.Event.Repo.FullName, x.access.trusted
	b.run, b.attempt, b.job = int64(x.job.Run.ID), int64(x.job.Run.Attempt), int64(x.job.ID)
	b.created, b.used = now, now
	return id, x.s.meta.write(ctx, func(t *tx) error {
		var n int
		if err := t.row("SELECT count(*) FROM blobs WHERE job = ? AND state <> 'done'", b.job).Scan(&n); err != nil {
			return err
		}
		if n >= x.s.cfg.Limits.Uploads {
			return tgr.Errorf("results.upload", tgr.Limit, "the job has begun %d uploads and finished none of them", n)
		}
		if err := check(t); err != nil {
			return err
		}
		id, err = t.insert(&b)
		return err
	})
}

func (x *Session) finalizeCache(r *http.Request, q *finalizeCache) (any, error) {
	if err := checkCache(q.Version, q.Key); err != nil {
		return nil, err
	}
	id, err := x.commit(r.Context(), int64(q.Size), "kind = 'cache' AND name = ? AND version = ?", q.Key, q.Version)
	if err != nil {
		return nil, err
	}
	return &finalizedCache{OK: true, ID: number(id)}, nil
}

// commit makes the latest upload of this job that the clause names a cache that can be fetched, and evicts what the
// repository has too much of. A second time it says the same again.
func (x *Session) commit(ctx context.Context, size int64, clause string, args ...any) (id int64, err error) {
	return id, x.s.meta.write(ctx, func(t *tx) error {
		b, err := one(ctx, t.tx, "WHERE job = ? AND "+clause+" ORDER BY state = 'sealed' DESC, id DESC", append([]any{x.job.ID}, args...)...)
		switch {
		case err != nil:
			return err
		case b == nil || b.state == open:
			return tgr.Errorf("results.cache", tgr.Invalid, "nothing was uploaded for this cache")
		case b.size != size:
			return tgr.Errorf("results.cache", tgr.Invalid, "the cache has %d bytes, and %d were announced", b.size, size)
		}
		if id = b.id; b.state == done {
			return nil
		}
		err = t.exec("UPDATE blobs SET state = 'done', created = ?, used = ? WHERE id = ?", x.s.cfg.Now().UnixMicro(), x.s.cfg.Now().UnixMicro(), id)
		if isUnique(err) {
			return conflictOr(nil)
		}
		if err != nil {
			return err
		}
		return x.s.evict(t, b)
	})
}

// evict removes the least recently used caches of a repository until they keep to the limit: first those of untrusted
// events, which have a quarter of it at most, so that strangers cannot drive out what the branches use. The fresh one,
// and what is being read, stays.
func (s *Service) evict(t *tx, fresh *blob) error {
	var all, strangers int64
	if err := t.row("SELECT sum(size), sum(size * (1 - trusted)) FROM blobs WHERE kind = 'cache' AND state = 'done' AND repo = ?", fresh.repo).
		Scan(&all, &strangers); err != nil || all <= s.cfg.Limits.CacheBytes && strangers <= s.cfg.Limits.strangers() {
		return err
	}
	list, err := find(t.ctx, t.tx, "WHERE kind = 'cache' AND state = 'done' AND repo = ? ORDER BY trusted, used, id", fresh.repo)
	if err != nil {
		return err
	}
	for _, b := range list {
		if all <= s.cfg.Limits.CacheBytes && (b.trusted || strangers <= s.cfg.Limits.strangers()) {
			continue
		}
		if b.id == fresh.id || s.held(b.id) {
			continue
		}
		if err := s.removeIn(t, b.id); err != nil {
			return err
		}
		s.cfg.Log.Info("cache evicted", "repository", b.repoName, "key", b.name, "scope", b.scope, "bytes", b.size)
		if all -= b.size; !b.trusted {
			strangers -= b.size
		}
	}
	return nil
}

func (x *Session) getCache(r *http.Request, q *getCache) (any, error) {
	b, err := x.lookUp(r.Context(), q.Version, append([]string{q.Key}, q.Restores...))
	if err != nil || b == nil {
		return &gotCache{}, err
	}
	return &gotCache{OK: true, URL: x.address(r, b.id, toRead), Key: b.name}, nil
}

// lookUp finds the cache that the keys name: in the job's own scope first, there by the first key, there one with
// exactly that key, then the newest that begins with it.
func (x *Session) lookUp(ctx context.Context, version string, keys []string) (*blob, error) {
	if !x.access.read {
		return nil, &deniedError{"cache read denied: the job has cache-mode: " + x.job.CacheMode}
	}
	if err := checkCache(version, keys...); err != nil {
		return nil, err
	}
	for _, scope := range x.access.scopes {
		for _, key := range keys {
			b, err := x.lookUpIn(ctx, scope, version, key)
			if err != nil || b != nil {
				return b, err
			}
		}
	}
	return nil, nil
}

// lookBack is how many caches that begin with a key are looked at: a power cut takes the bytes of the newest ones.
const lookBack = 8

func (x *Session) lookUpIn(ctx context.Context, scope scope, version, key string) (*blob, error) {
	const in = "WHERE kind = 'cache' AND state = 'done' AND repo = ? AND trusted = ? AND scope = ? AND version = ? AND "
	for _, clause := range []string{"name = ?", "instr(name, ?) = 1 ORDER BY created DESC, id DESC"} {
		list, err := find(ctx, x.s.meta.r, in+clause+" LIMIT ?", x.job.repo(), scope.trusted, scope.ref, version, key, lookBack)
		if err != nil {
			return nil, err
		}
		for i := range list {
			ok, err := x.s.complete(ctx, list[i].id)
			if err != nil {
				return nil, err
			}
			if ok { // else it is as if it were not there; the next save replaces it
				return &list[i], x.touch(ctx, &list[i])
			}
		}
	}
	return nil, nil
}

// touch notes that a cache was used, within a minute.
func (x *Session) touch(ctx context.Context, b *blob) error {
	now := x.s.cfg.Now()
	if now.Sub(b.used) < time.Minute {
		return nil
	}
	return x.s.meta.write(ctx, func(t *tx) error { return t.exec("UPDATE blobs SET used = ? WHERE id = ?", now.UnixMicro(), b.id) })
}

// checkCache refuses keys that GitHub refuses.
func checkCache(version string, keys ...string) error {
	invalid := func(format string, args ...any) error {
		return tgr.Errorf("results.cache", tgr.Invalid, format, args...)
	}
	if len(version) == 0 || len(version) > maxVersion || !plain(version) {
		return invalid("the version of a cache has to have 1 to %d bytes", maxVersion)
	}
	if len(keys) > maxKeys {
		return invalid("%d keys, the limit is %d", len(keys), maxKeys)
	}
	for _, k := range keys {
		if k == "" || utf8.RuneCountInString(k) > maxKey || strings.Contains(k, ",") || !plain(k) {
			return invalid("%q is no key of a cache: it has to have 1 to %d characters and no comma", clip(k, 40), maxKey)
		}
	}
	return nil
}

// plain reports whether a text is UTF-8 without control characters.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f })
}
