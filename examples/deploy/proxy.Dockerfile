# The local endpoint, from the root of this repository:
#
#	docker build -f examples/deploy/proxy.Dockerfile -t sealedchat-proxy .
#
# One static binary and the certificates of public authorities, no shell. It runs as user 65532,
# and with a read-only file system: it writes nothing.
ARG GO=docker.io/library/golang:1.26
FROM ${GO} AS build
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -C examples/proxy -trimpath -buildvcs=false -ldflags=-s -o /out/proxy .

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/proxy /proxy
USER 65532:65532
EXPOSE 8484
STOPSIGNAL SIGTERM
ENTRYPOINT ["/proxy"]
