package results

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/terraphim/tgr"
)

const (
	identityFor = 5 * time.Minute // as GitHub's
	maxAudience = 1024
)

// identify answers a job's request for an identity token.
//
// https://docs.github.com/en/actions/reference/security/oidc
func (x *Session) identify(w http.ResponseWriter, r *http.Request) error {
	if !x.mayIdentify() {
		return tgr.Errorf("results.identify", tgr.Unauthorized, "the job has no permission id-token: write")
	}
	audience := r.URL.Query().Get("audience")
	if len(audience) > maxAudience {
		return tgr.Errorf("results.identify", tgr.Invalid, "an audience of %d bytes, the limit is %d", len(audience), maxAudience)
	}
	key, err := x.s.keys.signing()
	if err != nil {
		return err
	}
	t := jwt.NewWithClaims(jwt.SigningMethodRS256, x.identity(audience))
	t.Header["kid"] = key.id
	text, err := t.SignedString(key.key)
	if err != nil {
		return fmt.Errorf("sign an identity token: %w", err)
	}
	return answer(w, http.StatusOK, map[string]any{"count": len(text), "value": text})
}

// identity is the claims of an identity token: GitHub's names, with the same meaning.
func (x *Session) identity(audience string) jwt.MapClaims {
	run, ev, now := x.job.Run, x.job.Run.Event, x.s.cfg.Now()
	owner, _, _ := strings.Cut(ev.Repo.FullName, "/")
	if audience == "" {
		audience = "https://github.com/" + owner
	}
	workflow := ev.Repo.FullName + "/" + run.WorkflowFile + "@" + ev.Ref
	ref, sha, visibility, kind := x.job.WorkflowRef, x.job.WorkflowSHA, "public", "branch"
	if ref == "" {
		ref, sha = workflow, ev.SHA
	}
	if ev.Repo.Private {
		visibility = "private"
	}
	if strings.HasPrefix(ev.Ref, "refs/tags/") {
		kind = "tag"
	}
	c := jwt.MapClaims{
		"jti": tgr.NewToken(), "iss": x.s.cfg.Issuer, "aud": audience, "sub": x.subject(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(identityFor).Unix(),
		"ref": ev.Ref, "ref_type": kind, "ref_protected": "false", "sha": ev.SHA, "base_ref": ev.BaseRef, "head_ref": ev.HeadRef,
		"repository": ev.Repo.FullName, "repository_id": strconv.FormatInt(ev.Repo.ID, 10), "repository_owner": owner,
		"repository_visibility": visibility, "actor": ev.Actor, "actor_id": strconv.FormatInt(ev.ActorID, 10),
		"run_id": run.ID.String(), "run_number": strconv.Itoa(run.Number), "run_attempt": strconv.Itoa(max(1, run.Attempt)),
		"event_name": ev.Name, "workflow": run.WorkflowName, "workflow_ref": workflow, "workflow_sha": ev.SHA,
		"job_workflow_ref": ref, "job_workflow_sha": sha, "runner_environment": "self-hosted",
	}
	if id := ownerID(ev.Payload); id != 0 {
		c["repository_owner_id"] = strconv.FormatInt(id, 10)
	}
	if x.job.Environment != "" {
		c["environment"] = x.job.Environment
	}
	return c
}

// subject is the claim that most verifiers go by.
func (x *Session) subject() string {
	ev := x.job.Run.Event
	switch {
	case x.job.Environment != "":
		// An environment's name must not pass for another part of the subject.
		return "repo:" + ev.Repo.FullName + ":environment:" + strings.ReplaceAll(x.job.Environment, ":", "%3A")
	case strings.HasPrefix(ev.Name, "pull_request") && ev.Name != "pull_request_target":
		return "repo:" + ev.Repo.FullName + ":pull_request"
	}
	return "repo:" + ev.Repo.FullName + ":ref:" + ev.Ref
}

// ownerID is repository.owner.id of a payload, 0 if it has none.
func ownerID(payload json.RawMessage) int64 {
	var p struct {
		Repository struct {
			Owner struct {
				ID int64 `json:"id"`
			} `json:"owner"`
		} `json:"repository"`
	}
	if json.Unmarshal(payload, &p) != nil {
		return 0
	}
	return p.Repository.Owner.ID
}

// Issuer serves what others need to verify identity tokens, below the Config's Issuer: the discovery document and the
// keys. It holds no secret, and anybody may read it. Where no Issuer is set there is nothing.
func (s *Service) Issuer() http.Handler {
	mux := http.NewServeMux()
	if s.cfg.Issuer == "" {
		return mux
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		publish(w, map[string]any{
			"issuer": s.cfg.Issuer, "jwks_uri": s.cfg.Issuer + "/.well-known/jwks",
			"subject_types_supported": []string{"public", "pairwise"}, "response_types_supported": []string{"id_token"},
			"claims_supported":                      claimNames(),
			"id_token_signing_alg_values_supported": []string{"RS256"}, "scopes_supported": []string{"openid"},
		})
	})
	mux.HandleFunc("GET /.well-known/jwks", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := s.keys.signing(); err != nil { // who asks before the first token gets the key that will sign it
			s.cfg.Log.Error("keys of the issuer", "error", err)
		}
		var set jose.JSONWebKeySet
		for _, k := range s.keys.published() {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: &k.key.PublicKey, KeyID: k.id, Algorithm: "RS256", Use: "sig"})
		}
		publish(w, set)
	})
	return mux
}

func claimNames() []string {
	return []string{"sub", "aud", "exp", "iat", "iss", "jti", "nbf", "ref", "ref_type", "ref_protected", "sha", "base_ref", "head_ref",
		"repository", "repository_id", "repository_owner", "repository_owner_id", "repository_visibility", "actor", "actor_id",
		"run_id", "run_number", "run_attempt", "event_name", "workflow", "workflow_ref", "workflow_sha", "job_workflow_ref",
		"job_workflow_sha", "environment", "runner_environment"}
}

func publish(w http.ResponseWriter, v any) {
	w.Header().Set("Cache-Control", "public, max-age=3600")
	answer(w, http.StatusOK, v)
}
