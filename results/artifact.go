package results

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/terraphim/tgr"
)

// maxArtifactName is how many characters the name of an artifact may have.
const maxArtifactName = 255

// Messages of the artifact service, in JSON alone: no client is known that speaks protobuf to it.
type (
	ids struct {
		Run string `json:"workflow_run_backend_id"`
		Job string `json:"workflow_job_run_backend_id"`
	}
	createArtifact struct {
		ids
		Name    string `json:"name"`
		Expires string `json:"expires_at"`
		Mime    string `json:"mime_type"`
	}
	createdArtifact struct {
		OK  bool   `json:"ok"`
		URL string `json:"signed_upload_url"`
	}
	finalizeArtifact struct {
		ids
		Name string `json:"name"`
		Size number `json:"size"`
		Hash string `json:"hash"`
	}
	artifactDone struct {
		OK bool   `json:"ok"`
		ID number `json:"artifact_id"`
	}
	listArtifacts struct {
		ids
		Name string `json:"name_filter"`
		ID   number `json:"id_filter"`
	}
	listedArtifact struct {
		ids
		ID      number `json:"database_id"`
		Name    string `json:"name"`
		Size    number `json:"size"`
		Created string `json:"created_at"`
		Digest  string `json:"digest,omitempty"`
	}
	listedArtifacts struct {
		Artifacts []listedArtifact `json:"artifacts"`
	}
	namedArtifact struct {
		ids
		Name string `json:"name"`
	}
	artifactURL struct {
		URL string `json:"signed_url"`
	}
)

func (x *Session) artifactMethod(name string) (method, bool) {
	switch name {
	case "CreateArtifact":
		q := &createArtifact{}
		return method{q, func(r *http.Request) (any, error) { return x.createArtifact(r, q) }}, true
	case "FinalizeArtifact":
		q := &finalizeArtifact{}
		return method{q, func(r *http.Request) (any, error) { return x.finalizeArtifact(r, q) }}, true
	case "ListArtifacts":
		q := &listArtifacts{}
		return method{q, func(r *http.Request) (any, error) { return x.listArtifacts(r, q) }}, true
	case "GetSignedArtifactURL":
		q := &namedArtifact{}
		return method{q, func(r *http.Request) (any, error) { return x.artifactURL(r, q) }}, true
	case "DeleteArtifact":
		q := &namedArtifact{}
		return method{q, func(r *http.Request) (any, error) { return x.deleteArtifact(r, q) }}, true
	}
	return method{}, false
}

// check refuses ids that are not this job's: the client takes them from its token.
func (i ids) check(x *Session) error {
	if i.Run != x.runID() || i.Job != x.job.ID.String() {
		return tgr.Errorf("results.artifact", tgr.NotFound, "there is no such run, or it is not this job's")
	}
	return nil
}

// checkArtifactName refuses what GitHub refuses: what cannot be a file's name somewhere.
func checkArtifactName(name string) error {
	bad := name == "" || name == "." || name == ".." || utf8.RuneCountInString(name) > maxArtifactName || !plain(name)
	if bad || strings.ContainsAny(name, `":<>|*?\/`) {
		return tgr.Errorf("results.artifact", tgr.Invalid,
			`%q is no name of an artifact: it has to have 1 to %d characters and none of " : < > | * ? \ /`, clip(name, 40), maxArtifactName)
	}
	return nil
}

// artifactName is a name as it is kept: composed, so that two which look the same, and are one file's name on some systems,
// are one artifact's.
func artifactName(name string) string { return norm.NFC.String(name) }

func (x *Session) createArtifact(r *http.Request, q *createArtifact) (any, error) {
	q.Name = artifactName(q.Name)
	if err := errors.Join(q.check(x), checkArtifactName(q.Name)); err != nil {
		return nil, err
	}
	kind, err := mimeType(q.Mime)
	if err != nil {
		return nil, err
	}
	ends, err := x.expiry(q.Expires)
	if err != nil {
		return nil, err
	}
	b := blob{kind: artifactKind, scope: x.access.scopes[0].ref, name: q.Name, version: x.try(), mime: kind, ends: ends}
	id, err := x.begin(r.Context(), b, func(t *tx) error {
		have, err := x.artifact(t.ctx, t.tx, q.Name, true)
		if err != nil {
			return err
		}
		if have != nil {
			if have.job != int64(x.job.ID) || have.version == b.version {
				return errArtifactExists(q.Name)
			}
			// The job is tried again for a fault of ours, and does what it did before.
			if err := x.s.removeIn(t, have.id); err != nil {
				return err
			}
		}
		return x.fits(t, 0)
	})
	if err != nil {
		return nil, err
	}
	return &createdArtifact{OK: true, URL: x.address(r, id, toWrite)}, nil
}

func errArtifactExists(name string) error {
	return tgr.Errorf("results.artifact", tgr.Conflict, "an artifact with this name already exists on the workflow run: %s", clip(name, 100))
}

// expiry is when an artifact ends: when it says so, and with the retention at the latest.
func (x *Session) expiry(text string) (time.Time, error) {
	now := x.s.cfg.Now()
	latest := now.Add(x.s.cfg.Limits.Retention)
	if text == "" {
		return latest, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || !t.After(now) {
		return time.Time{}, tgr.Errorf("results.artifact", tgr.Invalid, "expires_at %q is no time in the future", clip(text, 40))
	}
	if t.After(latest) {
		return latest, nil
	}
	return t, nil
}

// fits checks that the run may have one artifact more, of this size.
func (x *Session) fits(t *tx, size int64) error {
	var n int
	var sum int64
	if err := t.row("SELECT count(*), coalesce(sum(size), 0) FROM blobs WHERE kind = 'artifact' AND state = 'done' AND run = ?", x.job.Run.ID).
		Scan(&n, &sum); err != nil {
		return err
	}
	l := x.s.cfg.Limits
	if n >= l.Artifacts || sum+size > l.ArtifactBytes {
		return tgr.Errorf("results.artifact", tgr.Limit, "the run has %d artifacts of %d bytes, the limits are %d and %d", n, sum, l.Artifacts, l.ArtifactBytes)
	}
	return nil
}

func (x *Session) finalizeArtifact(r *http.Request, q *finalizeArtifact) (any, error) {
	q.Name = artifactName(q.Name)
	if err := errors.Join(q.check(x), checkArtifactName(q.Name)); err != nil {
		return nil, err
	}
	b, err := one(r.Context(), x.s.meta.r, "WHERE kind = 'artifact' AND job = ? AND name = ? ORDER BY state = 'sealed' DESC, id DESC", x.job.ID, q.Name)
	switch {
	case err != nil:
		return nil, err
	case b == nil || b.state == open:
		return nil, tgr.Errorf("results.artifact", tgr.Invalid, "nothing was uploaded for the artifact %s", clip(q.Name, 100))
	case b.size != int64(q.Size):
		return nil, tgr.Errorf("results.artifact", tgr.Invalid, "the artifact has %d bytes, and %d were announced", b.size, q.Size)
	case b.state == done: // the answer to the first time was lost
		return &artifactDone{OK: true, ID: number(b.id)}, nil
	}
	list, err := parts(r.Context(), x.s.meta.r, b.id)
	if err != nil {
		return nil, err
	}
	digest, err := x.digest(r.Context(), b.id, list)
	if err != nil {
		return nil, err
	}
	if q.Hash != "" && !strings.EqualFold(q.Hash, digest) {
		return nil, tgr.Errorf("results.artifact", tgr.Invalid, "the artifact's bytes have the digest %s, and %s was announced", digest, clip(q.Hash, 80))
	}
	err = x.s.meta.write(r.Context(), func(t *tx) error {
		if now, err := parts(t.ctx, t.tx, b.id); err != nil {
			return err
		} else if !slices.Equal(now, list) {
			return tgr.Errorf("results.artifact", tgr.Conflict, "the artifact %s is being uploaded again", clip(q.Name, 100))
		}
		if err := x.fits(t, b.size); err != nil {
			return err
		}
		return t.exec("UPDATE blobs SET state = 'done', digest = ?, created = ? WHERE id = ? AND state = 'sealed'", digest, x.s.cfg.Now().UnixMicro(), b.id)
	})
	if isUnique(err) {
		err = errArtifactExists(q.Name)
	}
	if err != nil {
		return nil, err
	}
	return &artifactDone{OK: true, ID: number(b.id)}, nil
}

// visible is the artifacts of the run that this attempt sees: of each name the one of the latest attempt.
func (x *Session) visible(ctx context.Context, q querier, clause string, args ...any) ([]blob, error) {
	return find(ctx, q, `AS b WHERE kind = 'artifact' AND state = 'done' AND run = ? AND attempt <= ? AND expires > ? AND attempt =
		(SELECT max(attempt) FROM blobs WHERE kind = 'artifact' AND state = 'done' AND run = b.run AND name = b.name AND attempt <= ?) `+clause,
		append([]any{x.job.Run.ID, x.job.Run.Attempt, x.s.cfg.Now().UnixMicro(), x.job.Run.Attempt}, args...)...)
}

// artifact returns the artifact of this name; own wants it of this attempt. nil is none.
func (x *Session) artifact(ctx context.Context, q querier, name string, own bool) (*blob, error) {
	list, err := x.visible(ctx, q, "AND name = ?", name)
	if err != nil || len(list) == 0 || own && list[0].attempt != int64(x.job.Run.Attempt) {
		return nil, err
	}
	return &list[0], nil
}

func (x *Session) listArtifacts(r *http.Request, q *listArtifacts) (any, error) {
	if err := q.check(x); err != nil {
		return nil, err
	}
	clause, args := "", []any{}
	if q.Name != "" {
		clause, args = clause+" AND name = ?", append(args, artifactName(q.Name))
	}
	if q.ID != 0 {
		clause, args = clause+" AND id = ?", append(args, int64(q.ID))
	}
	list, err := x.visible(r.Context(), x.s.meta.r, clause+" ORDER BY id", args...)
	if err != nil {
		return nil, err
	}
	reply := &listedArtifacts{Artifacts: []listedArtifact{}}
	for _, b := range list {
		reply.Artifacts = append(reply.Artifacts, listedArtifact{
			// The ids of this job, whoever made the artifact: the client sends them back.
			ids: q.ids, ID: number(b.id), Name: b.name, Size: number(b.size), Created: b.created.Format(time.RFC3339), Digest: b.digest,
		})
	}
	return reply, nil
}

func (x *Session) artifactURL(r *http.Request, q *namedArtifact) (any, error) {
	b, err := x.named(r.Context(), q, false)
	if err != nil {
		return nil, err
	}
	return &artifactURL{x.address(r, b.id, toRead)}, nil
}

func (x *Session) deleteArtifact(r *http.Request, q *namedArtifact) (any, error) {
	b, err := x.named(r.Context(), q, true) // what another attempt made stays its own
	if err != nil {
		return nil, err
	}
	return &artifactDone{OK: true, ID: number(b.id)}, x.s.remove(r.Context(), b.id)
}

func (x *Session) named(ctx context.Context, q *namedArtifact, own bool) (*blob, error) {
	if err := q.check(x); err != nil {
		return nil, err
	}
	b, err := x.artifact(ctx, x.s.meta.r, artifactName(q.Name), own)
	if err == nil && b == nil {
		err = tgr.Errorf("results.artifact", tgr.NotFound, "the run has no artifact %s", clip(q.Name, 100))
	}
	return b, err
}
