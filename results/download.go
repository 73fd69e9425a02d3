package results

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// get answers GET and HEAD of /blob/{id}.
func (x *Session) get(w http.ResponseWriter, r *http.Request) {
	err := func() error {
		id, err := x.addressed(r, toRead)
		if err != nil {
			return err
		}
		return x.s.send(w, r, id)
	}()
	if err != nil {
		x.log(r, err)
		failBlob(w, err)
	}
}

// send sends a blob that is done. Once it has begun, an error breaks the connection: the length was promised.
func (s *Service) send(w http.ResponseWriter, r *http.Request, id int64) error {
	defer s.hold(id)()
	b, err := one(r.Context(), s.meta.r, "WHERE id = ? AND state = 'done'", id)
	if err != nil {
		return err
	}
	if b == nil || !b.ends.IsZero() && !b.ends.After(s.cfg.Now()) {
		return tgr.Errorf("results.blob", tgr.NotFound, "it is no more")
	}
	list, err := parts(r.Context(), s.meta.r, id)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Accept-Ranges", "bytes")
	h.Set("ETag", `"`+strconv.FormatInt(id, 10)+`"`)
	span := span{0, b.size}
	status := http.StatusOK
	if text := cmpOr(r.Header.Get("X-Ms-Range"), r.Header.Get("Range")); text != "" {
		var ok bool
		if span, ok, err = parseRange(text, b.size); err != nil {
			h.Set("Content-Range", "bytes */"+strconv.FormatInt(b.size, 10))
			http.Error(w, err.Error(), http.StatusRequestedRangeNotSatisfiable)
			return nil
		}
		if ok {
			status = http.StatusPartialContent
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", span.from, span.to-1, b.size))
		}
	}
	h.Set("Content-Type", cmpOr(b.mime, "application/octet-stream"))
	h.Set("Content-Disposition", disposition(b))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("Content-Length", strconv.FormatInt(span.to-span.from, 10))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	if err := s.copyOut(w, r, list, span); err != nil {
		if r.Context().Err() == nil {
			s.cfg.Log.Warn("a download broke off", "blob", id, "error", err)
		}
		panic(http.ErrAbortHandler) // the client must not take what it has for the whole
	}
	return nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// disposition is what a browser, and the artifact client, save a blob as.
func disposition(b *blob) string {
	name := tgr.Artifact{Name: b.name, Type: b.mime}.File()
	plain := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return '_'
		}
		return c
	}, name)
	return `attachment; filename="` + plain + `"; filename*=UTF-8''` + url.PathEscape(name)
}

// span is the bytes from from up to, and without, to.
type span struct{ from, to int64 }

// parseRange reads a Range header with one range; ok is false for one that is to be passed over.
func parseRange(text string, size int64) (s span, ok bool, err error) {
	whole := span{0, size}
	spec, isBytes := strings.CutPrefix(strings.TrimSpace(text), "bytes=")
	first, last, isRange := strings.Cut(spec, "-")
	if !isBytes || !isRange || strings.Contains(spec, ",") {
		return whole, false, nil
	}
	outside := tgr.Errorf("results.blob", tgr.Invalid, "the range is outside of the %d bytes", size)
	if first == "" { // the last n bytes
		n, err := strconv.ParseUint(last, 10, 63)
		switch {
		case err != nil:
			return whole, false, nil
		case n == 0 || size == 0:
			return whole, false, outside
		}
		return span{max(0, size-int64(n)), size}, true, nil
	}
	from, err := strconv.ParseUint(first, 10, 63)
	if err != nil {
		return whole, false, nil
	}
	to := uint64(size)
	if last != "" {
		if to, err = strconv.ParseUint(last, 10, 63); err != nil || to < from {
			return whole, false, nil
		}
		to = min(to+1, uint64(size))
	}
	if from >= uint64(size) {
		return whole, false, outside
	}
	return span{int64(from), int64(to)}, true, nil
}

// chunk is how much is sent before the receiver's time begins anew.
const chunk = 4 << 20

// copyOut sends a span of a blob, from the kernel's cache to the socket where both allow it. The receiver has to keep
// going.
func (s *Service) copyOut(w http.ResponseWriter, r *http.Request, list []part, span span) error {
	rc := http.NewResponseController(w)
	going := func() { rc.SetWriteDeadline(time.Now().Add(2 * s.cfg.Limits.Idle)) } // not all writers have one
	var at int64
	for _, p := range list {
		from, to := max(0, span.from-at), min(p.size, span.to-at)
		if at += p.size; from >= to {
			continue
		}
		if err := s.copyPart(r.Context(), w, p.hash, from, to-from, going); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) copyPart(ctx context.Context, w io.Writer, hash string, from, n int64, going func()) error {
	in, err := s.blobs.Open(ctx, hash, from, n)
	if err != nil {
		return err
	}
	defer in.Close()
	for n > 0 {
		going()
		sent, err := io.CopyN(w, in, min(n, chunk))
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		n -= sent
	}
	return nil
}

// complete reports whether all bytes of a blob are there: after a power cut they may not be.
func (s *Service) complete(ctx context.Context, id int64) (bool, error) {
	list, err := parts(ctx, s.meta.r, id)
	if err != nil {
		return false, err
	}
	for _, p := range list {
		if ok, err := s.blobs.Has(ctx, p.hash, p.size); err != nil && !errors.Is(err, fs.ErrNotExist) || !ok {
			return false, err
		}
	}
	return true, nil
}

// mimeType checks what an artifact says that it is.
func mimeType(text string) (string, error) {
	if text == "" {
		return "application/zip", nil
	}
	_, _, err := mime.ParseMediaType(text)
	if err != nil || len(text) > 200 {
		return "", tgr.Errorf("results.artifact", tgr.Invalid, "%q is no media type", clip(text, 32))
	}
	return text, nil
}
