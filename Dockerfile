# Serving only: no torch, no onnx, no compiler. Both stages share a base, so that the virtual environment fits.
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
# Two builds give the same files: nothing below may write a time, a random order or a path of the build.
ARG SOURCE_DATE_EPOCH=0
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_COMPILE=0 PYTHONHASHSEED=0
WORKDIR /src
COPY deploy/image deploy/image
# Every package is the one of the lock files, bit for bit. Of a package for the image it is reported which file was taken.
RUN python3 -m venv --without-pip /build \
    && python3 -m venv --without-pip /opt/tidegate \
    && pip --python /build/bin/python install --require-hashes --only-binary :all: --requirement deploy/image/build.lock \
    && pip --python /opt/tidegate/bin/python install --require-hashes --only-binary :all: \
        --requirement deploy/image/server.lock --report /build/report.json
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY protos protos
COPY serving serving
COPY models /models
# What a server never loads is left out: tests of numpy, sources for compilers and type checkers, tools and the C library of onnxruntime
# (Python has its own copy). Bytecode is compiled here: at run time the root file system may be read-only. That of the lexers of
# pygments, which nothing loads, would take 4 MB.
# What git has checked out has the modes that its user's umask allows; here they are always the same.
# hadolint ignore=DL3013 # there is one version of tidegate in /build/wheels: the one that was just built
RUN chmod --recursive u=rwX,go=rX /src /models \
    && pip --python /build/bin/python wheel --no-build-isolation --no-deps --no-index --wheel-dir /build/wheels . \
    && pip --python /opt/tidegate/bin/python install --no-deps --no-index --find-links /build/wheels tidegate \
    && /build/bin/python deploy/image/sbom.py /opt/tidegate/bin/python /sbom.cdx.json /build/report.json /build/wheels/*.whl \
    && packages=$(echo /opt/tidegate/lib/python3*/site-packages) \
    && find "$packages" -name tests -type d -prune -exec rm -r {} + \
    && find "$packages" -type f -regex '.*[.]\(pyi\|pyx\|pxd\|c\|h\|a\)' -delete \
    && rm -r "$packages/numpy/f2py" "$packages/onnxruntime/transformers" "$packages/onnxruntime/tools" "$packages/onnxruntime/quantization" \
        "$packages"/onnxruntime/capi/libonnxruntime.so.* \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -x '/pygments/(lexers|styles)/' "$packages" \
    && find /opt/tidegate /models /sbom.cdx.json -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +

FROM ${BASE}
ARG SOURCE_DATE_EPOCH=0
# The official image has no bytecode of the standard library, and nobody else can write it: each process would compile it again.
# Anybody may write to /data, as to /tmp: the container has this one program, and may run as any user.
RUN library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))') \
    && touch /tmp/begun \
    && PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash \
        -x '/(test|tests|idlelib|idle_test|lib2to3|tkinter|turtledemo|ensurepip|site-packages|dist-packages)/' "$library" \
    && install --directory --mode 1777 /data \
    && find "$library" /data -newer /tmp/begun -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} + \
    && rm /tmp/begun
COPY --from=build /opt/tidegate /opt/tidegate
COPY --from=build /models /models
# What is in this image, in the format of CycloneDX.
COPY --from=build /sbom.cdx.json /sbom.cdx.json
ENV PATH=/opt/tidegate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TIDEGATE_MODELS=/models TIDEGATE_DATA_DIR=/data TIDEGATE_HOST=0.0.0.0
# Where streams rest: the one place that is written to.
VOLUME /data
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /
EXPOSE 50051 9464
# Starting Python costs some hundred milliseconds of CPU: not more often than needed.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s CMD ["tidegate", "health", "--http"]
# One worker a core that the container is given; the first process is their supervisor, and needs no other init.
ENTRYPOINT ["tidegate"]
CMD ["serve"]
