# make demo: a push and a pull request become jobs in microVMs, on this machine
# make test: all tests, real microVMs included

GO ?= go

.PHONY: demo test test-firecracker build lint bench clean

demo:
	@scripts/setup run
	@$(MAKE) --no-print-directory build
	@bin/tgr demo

# Both are static: the agent runs in any image, as the guest's first process, and what is not linked when it starts
# starts sooner.
build:
	@echo 'building tgr (the first time takes a minute)'
	@CGO_ENABLED=0 $(GO) build -o bin/tgr ./cmd/tgr
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags='-s -w' -o bin/tgr-guest ./cmd/tgr-guest

# With TGR_NETWORK the tests may fetch GitHub's own npm packages, to ask them for a second opinion.
# Where this machine's Node is too old for them, scripts/setup has installed another, which comes first.
test:
	@scripts/setup test
	@$(MAKE) --no-print-directory build
	@bin/tgr image build
	PATH="$${XDG_CACHE_HOME:-$$HOME/.cache}/tgr/test-node/node_modules/.bin:$$PATH" TGR_NETWORK=1 $(GO) test -race -timeout 45m ./...

# The conformance suite on a real Firecracker. Where none boots a guest, that is said, and is a failure.
test-firecracker:
	@$(MAKE) --no-print-directory build
	@bin/tgr image build
	bin/tgr doctor --probe firecracker
	TGR_FIRECRACKER=1 $(GO) test -count=1 -v -timeout 30m -run TestReal ./vm/firecracker

lint:
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@scripts/vulncheck

bench: build
	bin/tgr bench

clean:
	rm -rf bin
