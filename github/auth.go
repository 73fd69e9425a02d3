package github

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/bradleyfalzon/ghinstallation/v2"
	"github.com/google/go-github/v88/github"
	"github.com/terraphim/tgr"
)

// ClientConfig says where GitHub is and with what credentials. With neither Token nor AppID a Client has none.
type ClientConfig struct {
	tgr.Redacted

	BaseURL string // of the REST API; "": https://api.github.com/; of an Enterprise server https://host/api/v3/
	Token   string // a personal access token, or any other bearer token
	AppID   int64  // a GitHub App, which is preferred to Token
	AppKey  []byte // its private key, PEM
	HTTP    http.RoundTripper
	Log     *slog.Logger
}

// Client talks to GitHub's API with a token or as a GitHub App, whose installation is found by repository.
// It is safe for concurrent use.
type Client struct {
	c    ClientConfig
	base *url.URL
	app  *ghinstallation.AppsTransport // nil: no App
	pat  *github.Client                // nil: no token

	mu       sync.Mutex
	installs map[string]installation // by owner, in lower case
	logins   map[string]string       // who we are, by owner
}

// installation is the App in one account.
type installation struct {
	id    int64
	may   map[string]string // its permissions, as the API names them
	api   *github.Client
	token func(context.Context) (string, error)
}

const apiTimeout = 30 * time.Second // of one request

// NewClient checks the configuration and the App's key; it does no I/O.
func NewClient(c ClientConfig) (*Client, error) {
	if c.BaseURL == "" {
		c.BaseURL = "https://api.github.com/"
	}
	base, err := url.Parse(strings.TrimRight(c.BaseURL, "/") + "/")
	if err != nil || base.Scheme != "https" && base.Scheme != "http" || base.Host == "" {
		return nil, tgr.Errorf("github.new", tgr.Invalid, "the API's URL %q is not one of https or http", c.BaseURL)
	}
	if c.HTTP == nil {
		c.HTTP = http.DefaultTransport
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	cl := &Client{c: c, base: base, installs: make(map[string]installation), logins: make(map[string]string)}
	if c.AppID != 0 {
		if cl.app, err = ghinstallation.NewAppsTransport(c.HTTP, c.AppID, c.AppKey); err != nil {
			return nil, tgr.Errorf("github.new", tgr.Invalid, "the private key of GitHub App %d: %v", c.AppID, err)
		}
		cl.app.BaseURL = strings.TrimRight(base.String(), "/")
	} else if c.Token != "" {
		if cl.pat, err = cl.api(c.HTTP, github.WithAuthToken(c.Token)); err != nil {
			return nil, tgr.Errorf("github.new", tgr.Invalid, "%w", err)
		}
	}
	return cl, nil
}

// CanReport reports whether there are credentials at all.
func (c *Client) CanReport() bool { return c.app != nil || c.pat != nil }

func (c *Client) api(rt http.RoundTripper, opts ...github.ClientOptionsFunc) (*github.Client, error) {
	base := c.base.String()
	opts = append([]github.ClientOptionsFunc{
		github.WithHTTPClient(&http.Client{Transport: rt}), github.WithTimeout(apiTimeout), github.WithURLs(&base, &base),
		github.WithUserAgent("tgr"),
	}, opts...)
	return github.NewClient(opts...)
}

// forRepo returns the API as it may be used for a repository. The error says whether the App is not installed there.
func (c *Client) forRepo(ctx context.Context, repo string) (*github.Client, error) {
	in, err := c.install(ctx, repo)
	return in.api, err
}

// RepoToken returns a token for git and the API of a repository, "" without credentials. It fits SourceConfig.Token.
// An error of [tgr.NotFound] means that the App is not installed there.
func (c *Client) RepoToken(ctx context.Context, repo string) (string, error) {
	if !c.CanReport() {
		return "", nil
	}
	in, err := c.install(ctx, repo)
	if answered(err, http.StatusNotFound) {
		return "", tgr.Errorf("github.token", tgr.NotFound, "GitHub App %d is not installed for %s", c.c.AppID, repo)
	}
	if err != nil {
		return "", err
	}
	return in.token(ctx)
}

func (c *Client) install(ctx context.Context, repo string) (installation, error) {
	owner, name, _ := strings.Cut(repo, "/")
	if !validRepo(repo) {
		return installation{}, tgr.Errorf("github.install", tgr.Invalid, "%q is not owner/name", clip(repo, 100))
	}
	if c.app == nil {
		return installation{api: c.pat, token: func(context.Context) (string, error) { return c.c.Token, nil }}, nil
	}
	c.mu.Lock()
	in, ok := c.installs[strings.ToLower(owner)]
	c.mu.Unlock()
	if ok {
		return in, nil
	}
	asApp, err := c.api(c.app)
	if err != nil {
		return installation{}, err
	}
	found, _, err := asApp.Apps.GetRepositoryInstallation(ctx, owner, name)
	if err != nil {
		return installation{}, fmt.Errorf("find the installation of GitHub App %d for %s: %w", c.c.AppID, repo, err)
	}
	own := *c.app // which the installation's transport writes to whenever it asks for a token
	tr := ghinstallation.NewFromAppsTransport(&own, found.GetID())
	tr.BaseURL = own.BaseURL
	if in.api, err = c.api(tr); err != nil {
		return installation{}, err
	}
	in.token, in.id, in.may = tr.Token, found.GetID(), permissionMap(found.Permissions)
	c.mu.Lock()
	c.installs[strings.ToLower(owner)] = in
	c.mu.Unlock()
	return in, nil
}

// forget drops what is known of an owner's installation: it was removed, or made anew.
func (c *Client) forget(repo string) {
	owner, _, _ := strings.Cut(repo, "/")
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.installs, strings.ToLower(owner))
}

// login returns the name under which we comment.
func (c *Client) login(ctx context.Context, repo string) (string, error) {
	owner, _, _ := strings.Cut(repo, "/")
	c.mu.Lock()
	login := c.logins[owner]
	c.mu.Unlock()
	if login != "" {
		return login, nil
	}
	if c.app != nil {
		asApp, err := c.api(c.app)
		if err != nil {
			return "", err
		}
		app, _, err := asApp.Apps.Get(ctx, "")
		if err != nil {
			return "", err
		}
		login = app.GetSlug() + "[bot]"
	} else {
		user, _, err := c.pat.Users.Get(ctx, "")
		if err != nil {
			return "", err
		}
		login = user.GetLogin()
	}
	c.mu.Lock()
	c.logins[owner] = login
	c.mu.Unlock()
	return login, nil
}
