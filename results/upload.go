package results

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr"
)

// The uploads of a blob are the part of Azure's block blobs that GitHub's clients use: Put Blob, Put Block and Put Block
// List. The address is the credential. Each may come again after an answer that was lost.
//
// https://learn.microsoft.com/en-us/rest/api/storageservices/put-block-list

const (
	maxBlockID = 88      // bytes of base64: Azure allows 64 bytes
	maxList    = 2 << 20 // bytes of a block list
	copyBuffer = 128 << 10
)

// put answers PUT /blob/{id}.
func (x *Session) put(w http.ResponseWriter, r *http.Request) {
	if err := x.putBlob(r); err != nil {
		x.log(r, err)
		failBlob(w, err)
		return
	}
	w.Header().Set("ETag", `"`+r.PathValue("id")+`"`)
	w.Header().Set("Last-Modified", x.s.cfg.Now().UTC().Format(http.TimeFormat))
	w.Header().Set("X-Ms-Request-Id", tgr.NewToken())
	w.WriteHeader(http.StatusCreated)
}

func (x *Session) putBlob(r *http.Request) error {
	id, err := x.addressed(r, toWrite)
	if err != nil {
		return err
	}
	switch q := r.URL.Query(); q.Get("comp") {
	case "":
		if t := r.Header.Get("X-Ms-Blob-Type"); t != "BlockBlob" {
			return tgr.Errorf("results.blob", tgr.Invalid, "a blob of type %q: only BlockBlob is supported", clip(t, 32))
		}
		if err := x.receive(r, id, wholeBlob); err != nil {
			return err
		}
		return x.seal(r.Context(), id, []string{wholeBlob}, r.Header.Get("X-Ms-Blob-Content-Type"))
	case "block":
		block := q.Get("blockid")
		if b, err := base64.StdEncoding.DecodeString(block); err != nil || len(b) == 0 || len(block) > maxBlockID {
			return tgr.Errorf("results.blob", tgr.Invalid, "%q is no block id: it has to be base64 of 1 to 64 bytes", clip(block, 32))
		}
		return x.receive(r, id, block)
	case "blocklist":
		list, err := readBlockList(r.Body, x.s.cfg.Limits.Blocks)
		if err != nil {
			return err
		}
		return x.seal(r.Context(), id, list, r.Header.Get("X-Ms-Blob-Content-Type"))
	default:
		return tgr.Errorf("results.blob", tgr.Invalid, "comp=%s is not supported", clip(q.Get("comp"), 32))
	}
}

// wholeBlob is the id of the only block of a blob that came in one piece. No client can send it.
const wholeBlob = "*"

// receive keeps the body of a request as a block of a blob.
func (x *Session) receive(r *http.Request, id int64, block string) error {
	left, kind, err := x.room(r.Context(), id, block)
	if err != nil {
		return err
	}
	if r.ContentLength > left {
		return tooLarge(left)
	}
	f, err := os.CreateTemp(filepath.Join(x.s.cfg.Dir, "tmp"), "upload-*")
	if err != nil {
		return tgr.Errorf("results.blob", tgr.Unavailable, "there is no place for an upload: %w", err)
	}
	defer os.Remove(f.Name())
	p, err := x.copy(f, r.Body, left, r.ContentLength)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if r.ContentLength >= 0 && p.size != r.ContentLength {
		return tgr.Errorf("results.blob", tgr.Invalid, "the body ended after %d bytes of %d", p.size, r.ContentLength)
	}
	p.block = block
	if err := x.s.keep(r.Context(), id, p, f.Name()); err != nil {
		return err
	}
	if kind == artifactKind {
		x.follows.add(x.s.blobs, id, p)
	}
	return nil
}

func tooLarge(left int64) error {
	return tgr.Errorf("results.blob", tgr.Limit, "the upload is too large: %d bytes more are allowed", max(0, left))
}

// roomAhead is how many bytes of the disk an upload gets at a time: so large that the file system is asked seldom, so small
// that who announces much and sends nothing holds little.
const roomAhead = 32 << 20

// copy writes a body of at most left bytes to f, and says what they were. announced is how many it should be; -1: unknown.
func (x *Session) copy(f *os.File, body io.Reader, left, announced int64) (p part, err error) {
	buf, _ := x.s.buffers.Get().(*[copyBuffer]byte) // to clear fresh ones costs more than a small upload
	if buf == nil {
		buf = new([copyBuffer]byte)
	}
	defer x.s.buffers.Put(buf)
	sum := blake3.New()
	defer func() { p.hash = hex.EncodeToString(sum.Sum(nil)) }()
	var room int64
	for {
		if room < min(announced, p.size+copyBuffer) {
			n := min(announced-room, roomAhead)
			// Only saves time, and not every file system can. The file does not grow by it: else, after a power cut, it could
			// have all its length and no bytes, and pass for complete.
			unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, room, n)
			room += n
		}
		n, err := body.Read(buf[:])
		if p.size += int64(n); p.size > left {
			return p, tooLarge(left)
		}
		if x.sent.Add(int64(n)) > x.s.cfg.Limits.JobBytes {
			return p, tgr.Errorf("results.blob", tgr.Limit, "the job has sent more than %d bytes", x.s.cfg.Limits.JobBytes)
		}
		sum.Write(buf[:n])
		if _, err := f.Write(buf[:n]); err != nil {
			return p, tgr.Errorf("results.blob", tgr.Unavailable, "write an upload: %w", err)
		}
		if errors.Is(err, io.EOF) {
			return p, nil
		}
		if err != nil {
			return p, tgr.Errorf("results.blob", tgr.Invalid, "the body broke off after %d bytes: %w", p.size, err)
		}
	}
}

// room checks that a block may be put into a blob of this job, and returns how large it may be, and what the blob is.
func (x *Session) room(ctx context.Context, id int64, block string) (left int64, kind string, err error) {
	b, err := x.mine(ctx, x.s.meta.r, id)
	if err != nil {
		return 0, "", err
	}
	var others int
	var size int64
	if err := x.s.meta.r.QueryRowContext(ctx, "SELECT count(*), coalesce(sum(size), 0) FROM parts WHERE blob = ? AND block <> ?", id, block).
		Scan(&others, &size); err != nil {
		return 0, "", err
	}
	switch {
	case b.state == done, b.state == sealed && block != wholeBlob:
		return 0, "", tgr.Errorf("results.blob", tgr.Conflict, "the upload is complete and cannot be changed")
	case others >= x.s.cfg.Limits.Blocks:
		return 0, "", tgr.Errorf("results.blob", tgr.Limit, "more than %d blocks", x.s.cfg.Limits.Blocks)
	}
	return x.most(b.kind) - size, b.kind, nil
}

// most is how large a blob of this kind may be. The fresh cache is the one that eviction spares, so that it has to fit by
// itself: a stranger's into what strangers have.
func (x *Session) most(kind string) int64 {
	l := x.s.cfg.Limits
	switch {
	case kind != cacheKind:
		return l.BlobBytes
	case !x.access.trusted:
		return min(l.BlobBytes, l.strangers())
	}
	return min(l.BlobBytes, l.CacheBytes)
}

// mine returns an upload of this job.
func (x *Session) mine(ctx context.Context, q querier, id int64) (*blob, error) {
	b, err := one(ctx, q, "WHERE id = ? AND job = ?", id, x.job.ID)
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, tgr.Errorf("results.blob", tgr.NotFound, "there is no such upload")
	}
	return b, nil
}

// keep makes a file of ours a part of a blob. First the part is written down, so that nobody removes the same bytes
// meanwhile; then the bytes go to their place; then the part counts. Other bytes for a blob that is sealed unseal it:
// nobody is to finish it by what it was.
func (s *Service) keep(ctx context.Context, id int64, p part, file string) error {
	var again bool
	err := s.meta.write(ctx, func(t *tx) error {
		b, err := one(ctx, t.tx, "WHERE id = ?", id)
		if err != nil {
			return err
		}
		if b != nil && b.state == sealed && p.block == wholeBlob {
			err := t.row("SELECT EXISTS (SELECT 1 FROM parts WHERE blob = ? AND block = ? AND hash = ?)", id, p.block, p.hash).Scan(&again)
			if err != nil || again {
				return err
			}
			b.state = open
			if err := t.exec("UPDATE blobs SET state = 'open' WHERE id = ?", id); err != nil {
				return err
			}
		}
		if b == nil || b.state != open {
			return tgr.Errorf("results.blob", tgr.Conflict, "the upload has ended")
		}
		old, err := t.replace(id, p)
		if err != nil {
			return err
		}
		gone, err := t.unused(old)
		return errors.Join(err, s.removeBytes(t, gone))
	})
	if err != nil || again {
		return err
	}
	put := s.blobs.Put(ctx, p.hash, file)
	err = s.meta.write(context.WithoutCancel(ctx), func(t *tx) error {
		if put == nil {
			if err := t.exec("UPDATE parts SET stored = 1 WHERE blob = ? AND block = ? AND hash = ?", id, p.block, p.hash); err != nil {
				return err
			}
		}
		gone, err := t.unused([]part{p}) // the part is no more: nobody else would ever remove its bytes
		return errors.Join(err, s.removeBytes(t, gone))
	})
	if put != nil {
		return tgr.Errorf("results.blob", tgr.Unavailable, "keep an upload: %w", put)
	}
	return err
}

// seal makes a blob of the blocks in the list, in that order, and forgets the others.
func (x *Session) seal(ctx context.Context, id int64, list []string, mime string) error {
	return x.s.meta.write(ctx, func(t *tx) error {
		b, err := x.mine(ctx, t.tx, id)
		if err != nil {
			return err
		}
		have, err := parts(ctx, t.tx, id)
		if err != nil {
			return err
		}
		if b.state != open {
			if sameBlocks(have, list) {
				return nil // the answer to the first time was lost
			}
			return tgr.Errorf("results.blob", tgr.Conflict, "the upload is complete and cannot be changed")
		}
		rest, size, err := order(t, id, have, list)
		if err != nil {
			return err
		}
		if most := x.most(b.kind); size > most {
			return tooLarge(most)
		}
		if mime = clip(mime, 200); mime == "" || b.mime != "" {
			mime = b.mime // what the artifact was announced as
		}
		gone, err := t.dropParts(id, rest)
		if err == nil {
			err = x.s.removeBytes(t, gone)
		}
		if err != nil {
			return err
		}
		return t.exec("UPDATE blobs SET state = 'sealed', size = ?, mime = ? WHERE id = ?", size, mime, id)
	})
}

// sameBlocks reports whether a sealed blob is made of this list.
func sameBlocks(have []part, list []string) bool {
	if len(have) != len(list) {
		return false
	}
	for i, p := range have {
		if p.block != list[i] {
			return false
		}
	}
	return true
}

// order numbers the parts in the list, and returns the others and the size of those.
func order(t *tx, id int64, have []part, list []string) (rest []part, size int64, err error) {
	by := map[string]part{}
	for _, p := range have {
		by[p.block] = p
	}
	for i, block := range list {
		p, ok := by[block]
		if !ok || !p.stored {
			return nil, 0, tgr.Errorf("results.blob", tgr.Invalid, "the block list names %q, which was not sent, or names it twice", clip(block, 100))
		}
		delete(by, block)
		size += p.size
		if err := t.exec("UPDATE parts SET seq = ? WHERE blob = ? AND block = ?", i, id, block); err != nil {
			return nil, 0, err
		}
	}
	for _, p := range by {
		rest = append(rest, p)
	}
	return rest, size, nil
}

// readBlockList reads the body of Put Block List.
func readBlockList(r io.Reader, most int) ([]string, error) {
	invalid := func(err error) error {
		return tgr.Errorf("results.blob", tgr.Invalid, "the block list cannot be read: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxList+1))
	if err != nil {
		return nil, invalid(err)
	}
	if len(b) > maxList {
		return nil, tgr.Errorf("results.blob", tgr.Limit, "a block list of more than %d bytes", maxList)
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	var list []string
	depth, roots := 0, 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && roots == 1 {
			return list, nil
		}
		if err != nil {
			return nil, invalid(err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth++; depth == 1 {
				roots++
			}
			if want := []string{"BlockList", "Latest Uncommitted Committed"}; depth > 2 || !isOneOf(want[depth-1], t.Name.Local) {
				return nil, invalid(fmt.Errorf("element %q at level %s", clip(t.Name.Local, 32), strconv.Itoa(depth)))
			}
			if depth == 2 {
				if list = append(list, ""); len(list) > most {
					return nil, tgr.Errorf("results.blob", tgr.Limit, "more than %d blocks", most)
				}
			}
		case xml.EndElement:
			depth--
		case xml.CharData:
			if depth == 2 {
				// In pieces where a comment is between them: what cannot be an id is not put together either.
				if list[len(list)-1] += string(bytes.TrimSpace(t)); len(list[len(list)-1]) > maxBlockID {
					return nil, invalid(fmt.Errorf("%q is no block id", clip(list[len(list)-1], 32)))
				}
			}
		case xml.Directive:
			return nil, invalid(errors.New("it has a declaration"))
		}
	}
}

func isOneOf(words, name string) bool {
	for w := range bytes.FieldsSeq([]byte(words)) {
		if string(w) == name {
			return true
		}
	}
	return false
}
