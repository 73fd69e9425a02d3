package results

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// The first cache service, for actions that were pinned before 2025.

// v1 makes a handler of one that checks the job's token and answers errors.
func (x *Session) v1(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		use := forRuntime
		if strings.HasPrefix(r.URL.Path, "/oidc/") {
			use = forIdentity
		}
		err := x.authorize(r, use)
		if err == nil {
			err = h(w, r)
		}
		if err != nil {
			x.log(r, err)
			fail(w, err)
		}
	}
}

func (x *Session) v1Get(w http.ResponseWriter, r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return tgr.Errorf("results.cache", tgr.Invalid, "the query cannot be read")
	}
	b, err := x.lookUp(r.Context(), q.Get("version"), strings.Split(q.Get("keys"), ","))
	if err != nil {
		return err
	}
	if b == nil {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return answer(w, http.StatusOK, map[string]string{
		"cacheKey": b.name, "scope": b.scope, "creationTime": b.created.Format(time.RFC3339), "archiveLocation": x.address(r, b.id, toRead),
	})
}

// v1List answers the client's question, when it debugs, which caches there are for a key.
func (x *Session) v1List(w http.ResponseWriter, r *http.Request) error {
	key := r.URL.Query().Get("key")
	if err := checkCache("-", key); err != nil {
		return err
	}
	type entry struct {
		Key     string `json:"cacheKey"`
		Scope   string `json:"scope"`
		Version string `json:"cacheVersion"`
		Created string `json:"creationTime"`
	}
	entries := []entry{}
	for _, scope := range x.access.scopes {
		list, err := find(r.Context(), x.s.meta.r, "WHERE kind = 'cache' AND state = 'done' AND repo = ? AND trusted = ? AND scope = ? AND instr(name, ?) = 1 LIMIT 100",
			x.job.repo(), scope.trusted, scope.ref, key)
		if err != nil {
			return err
		}
		for _, b := range list {
			entries = append(entries, entry{b.name, b.scope, b.version, b.created.Format(time.RFC3339)})
		}
	}
	return answer(w, http.StatusOK, map[string]any{"totalCount": len(entries), "artifactCaches": entries})
}

func (x *Session) v1Reserve(w http.ResponseWriter, r *http.Request) error {
	if x.access.denied != "" {
		return &deniedError{denied(x.access.denied)}
	}
	b, err := body(r)
	if err != nil {
		return err
	}
	var q struct {
		Key     string `json:"key"`
		Version string `json:"version"`
		Size    number `json:"cache_size"`
	}
	if err := decode(b, &q); err != nil {
		return err
	}
	if most := x.most(cacheKind); int64(q.Size) > most {
		return tgr.Errorf("results.cache", tgr.Invalid, "a cache of %d bytes, the limit is %d", q.Size, most) // 400, says the protocol
	}
	id, err := x.reserve(r.Context(), q.Key, q.Version)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, map[string]int64{"cacheId": id})
}

// v1Upload takes a chunk; chunks come in any order, several at a time.
func (x *Session) v1Upload(w http.ResponseWriter, r *http.Request) error {
	id, err := v1ID(r)
	if err != nil {
		return err
	}
	c, err := parseContentRange(r.Header.Get("Content-Range"))
	if err != nil {
		return err
	}
	if most := x.most(cacheKind); c.to > most {
		return tooLarge(most - c.from)
	}
	r.Body = http.MaxBytesReader(w, r.Body, c.to-c.from)
	if r.ContentLength >= 0 && r.ContentLength != c.to-c.from {
		return tgr.Errorf("results.cache", tgr.Invalid, "%d bytes for a range of %d", r.ContentLength, c.to-c.from)
	}
	r.ContentLength = c.to - c.from // chunked: receive sees to it that all came
	if err := x.receive(r, id, c.String()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func v1ID(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id <= 0 {
		return 0, tgr.Errorf("results.cache", tgr.NotFound, "there is no such upload")
	}
	return id, nil
}

// String is the block that holds these bytes. Its order among others is that of the bytes.
func (s span) String() string { return fmt.Sprintf("%016x-%016x", s.from, s.to) }

// parseContentRange reads "bytes 0-1048575/*".
func parseContentRange(text string) (span, error) {
	spec, isBytes := strings.CutPrefix(text, "bytes ")
	spec, _, hasTotal := strings.Cut(spec, "/")
	first, last, isRange := strings.Cut(spec, "-")
	from, err1 := strconv.ParseUint(first, 10, 62)
	to, err2 := strconv.ParseUint(last, 10, 62)
	if !isBytes || !isRange || !hasTotal || err1 != nil || err2 != nil || to < from {
		return span{}, tgr.Errorf("results.cache", tgr.Invalid, "%q is no Content-Range of bytes", clip(text, 64))
	}
	return span{int64(from), int64(to) + 1}, nil
}

// v1Commit completes a cache: its chunks have to follow one another without a gap.
func (x *Session) v1Commit(w http.ResponseWriter, r *http.Request) error {
	id, err := v1ID(r)
	if err != nil {
		return err
	}
	b, err := body(r)
	if err != nil {
		return err
	}
	var q struct {
		Size number `json:"size"`
	}
	if err := decode(b, &q); err != nil {
		return err
	}
	if up, err := x.mine(r.Context(), x.s.meta.r, id); err != nil {
		return err
	} else if up.state == open {
		list, err := x.chunks(r, id)
		if err != nil {
			return err
		}
		if err := x.seal(r.Context(), id, list, ""); err != nil {
			return err
		}
	}
	if _, err := x.commit(r.Context(), int64(q.Size), "kind = 'cache' AND id = ?", id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// chunks lists the blocks of an upload in the order of their bytes.
func (x *Session) chunks(r *http.Request, id int64) ([]string, error) {
	list, err := parts(r.Context(), x.s.meta.r, id) // none has a place yet: they come by name
	if err != nil {
		return nil, err
	}
	var names []string
	var at int64
	for _, p := range list {
		var c span
		if _, err := fmt.Sscanf(p.block, "%x-%x", &c.from, &c.to); err != nil || c.from != at || c.to-c.from != p.size {
			return nil, tgr.Errorf("results.cache", tgr.Invalid, "the chunks of the cache do not fit together at byte %d", at)
		}
		at = c.to
		names = append(names, p.block)
	}
	return names, nil
}
