# docker build -t tfswa-sep .
# docker run -p 127.0.0.1:8765:8765 -e TFSWA_TOKEN="a long sentence" -v tfswa-sep:/data tfswa-sep    # the page
# docker run -v "$PWD:/music" -u "$(id -u):$(id -g)" tfswa-sep song.mp3                             # one song

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md models.toml LICENSE ./
COPY LICENSES LICENSES
COPY tfswa_sep tfswa_sep
RUN python3 -m venv /opt/tfswa-sep \
    && /opt/tfswa-sep/bin/pip install --no-cache-dir --no-compile ".[serve,ffmpeg,tags]"

FROM python:3.13-slim
COPY --from=build /opt/tfswa-sep /opt/tfswa-sep
ENV PATH=/opt/tfswa-sep/bin:$PATH PYTHONDONTWRITEBYTECODE=1 XDG_CACHE_HOME=/data/cache
RUN useradd --uid 1000 tfswa-sep && install -d -o tfswa-sep -g tfswa-sep /data /music
USER tfswa-sep
WORKDIR /music
VOLUME /data
EXPOSE 8765
HEALTHCHECK CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8765/health')"]
ENTRYPOINT ["tfswa-sep"]
CMD ["serve", "--host", "0.0.0.0", "--data", "/data/songs", "--no-browser"]
