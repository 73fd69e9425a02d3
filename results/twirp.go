package results

import (
	"net/http"
	"strconv"

	"github.com/terraphim/tgr"
)

// message is a request or a reply that is known in protobuf too; in JSON it is what its tags say.
type message interface {
	// fields calls f for each field with its number and a pointer to it: *string, *number, *bool or *[]string.
	fields(f func(num int, field any))
}

// method is one method: a new request, and what answers it.
type method struct {
	request any
	call    func(r *http.Request) (any, error)
}

// twirp answers POST /twirp/{service}/{method}.
func (x *Session) twirp(w http.ResponseWriter, r *http.Request) {
	if err := x.callTwirp(w, r); err != nil {
		x.log(r, err)
		fail(w, err)
	}
}

func (x *Session) callTwirp(w http.ResponseWriter, r *http.Request) error {
	if err := x.authorize(r, forRuntime); err != nil {
		return err
	}
	m, ok := x.method(r.PathValue("service"), r.PathValue("method"))
	if !ok {
		return tgr.Errorf("results.twirp", tgr.NotFound, "there is no method %s", clip(r.URL.Path, 200))
	}
	b, err := body(r)
	if err != nil {
		return err
	}
	binary, known := m.request.(message)
	switch {
	case isJSON(r):
		err = decode(b, m.request)
	case known:
		err = decodeProto(b, binary)
	default:
		err = tgr.Errorf("results.twirp", tgr.Invalid, "%s speaks JSON alone", r.PathValue("service"))
	}
	if err != nil {
		return err
	}
	reply, err := m.call(r)
	if err != nil {
		return err
	}
	out, known := reply.(message)
	if isJSON(r) || !known {
		return answer(w, http.StatusOK, reply)
	}
	b = encodeProto(out)
	w.Header().Set("Content-Type", "application/protobuf")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
	return nil
}

// method finds a method, with a request of its own for this call.
func (x *Session) method(service, name string) (method, bool) {
	switch service {
	case "github.actions.results.api.v1.CacheService":
		switch name {
		case "CreateCacheEntry":
			q := &createCache{}
			return method{q, func(r *http.Request) (any, error) { return x.createCache(r, q) }}, true
		case "FinalizeCacheEntryUpload":
			q := &finalizeCache{}
			return method{q, func(r *http.Request) (any, error) { return x.finalizeCache(r, q) }}, true
		case "GetCacheEntryDownloadURL":
			q := &getCache{}
			return method{q, func(r *http.Request) (any, error) { return x.getCache(r, q) }}, true
		}
	case "github.actions.results.api.v1.ArtifactService":
		return x.artifactMethod(name)
	}
	return method{}, false
}
